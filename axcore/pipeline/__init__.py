"""Plan, convert, resume, build: the pipeline itself. Knows no model and no toolchain."""
