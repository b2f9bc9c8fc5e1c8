"""What turns a bundle into files a device runs. Importing it loads no toolchain."""
