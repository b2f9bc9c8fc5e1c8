"""What a plugin that brings a toolchain needs, beside the names of `axcore`.

A toolchain is a `Toolchain`: it lists its options and targets, checks graphs against a target's
`OperatorTable`, writes configuration files, and builds in steps that a `Build` keeps. One that
calls a vendor's tool describes it as a `Tool` and its calls as `Run`; `run_tool` does the rest.
"""

from .graph.lint import Finding, OperatorTable, Rule, lint_model
from .toolchains.contract import Build, BuildRequest, GraphFile, Target, Toolchain
from .toolchains.tool import Run, Tool, graph_files, required, run_tool

__all__ = [
    "Build",
    "BuildRequest",
    "Finding",
    "GraphFile",
    "OperatorTable",
    "Rule",
    "Run",
    "Target",
    "Tool",
    "Toolchain",
    "graph_files",
    "lint_model",
    "required",
    "run_tool",
]
