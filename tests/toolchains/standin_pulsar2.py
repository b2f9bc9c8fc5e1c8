# ruff: noqa: T201, E501
"""A stand-in for Pulsar2, which cannot be had in tests. It compiles nothing.

It takes the documented flags and no others, demands the files they name, and writes files of the
documented names, and prints of a graph what the documentation shows. ``settings.json`` beside it chooses the generation and the failures;
``journal.jsonl`` beside it receives every call.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(__file__).resolve().parent
SETTINGS = json.loads((HOME / "settings.json").read_text())

LOG = """\
              Quant Precision Table【EndToEnd Reference】
┏━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┓
┃ Operator  ┃      Type       ┃ Output Tensor ┃      Shape      ┃ DType ┃ QDType ┃ Cosin   ┃ MSE     ┃
┡━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━┩
│ Conv_0    │ AxQuantizedConv │ 317           │ (1, 32, 112, 2) │ FP32  │   U16  │ 0.99993 │ 0.00003 │
│ op_8:onnx │ AxQuantizedFC   │ out           │ (1, 10)         │ FP32  │   U16  │ {cosine} │ 0.00101 │
└───────────┴─────────────────┴───────────────┴─────────────────┴───────┴────────┴─────────┴─────────┘
2025-09-28 06:19:31.707 | INFO | yamain.command.build:compile_ptq_model:1134 - group 0 QuantAxModel macs: 13,437,952
2025-09-28 06:19:41.162 | INFO | yasched.test_onepass:results2model:2436 - max_cycle = 8,368,117
2025-09-28 06:19:43.411 | INFO | yamain.command.build:compile_ptq_model:1088 - fuse {parts} subgraph(s)"""


def parser_of(generation: str) -> argparse.ArgumentParser:
    """Return the parser of ``pulsar2`` with the language-model builder of one generation."""
    parser = argparse.ArgumentParser("pulsar2", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("version")
    build = commands.add_parser("build", allow_abbrev=False)
    for flag in ("--input", "--config", "--output_dir", "--output_name"):
        build.add_argument(flag, required=True)
    build.add_argument("--target_hardware", choices=["AX650", "AX620E"], default="AX650")
    build.add_argument("--npu_mode", choices=["NPU1", "NPU2", "NPU3"], default="NPU1")
    build.add_argument("--compiler.check", type=int, choices=range(4), default=0)
    llm = commands.add_parser(generation, allow_abbrev=False)
    for flag in ("--input_path", "--output_path"):
        llm.add_argument(flag, required=True)
    llm.add_argument("--hidden_state_type", choices=["fp16", "bf16", "fp32"], default="bf16")
    llm.add_argument("--weight_type", choices=["s8", "s4", "bf16"], default="s8")
    llm.add_argument("--model_type", default="auto")
    llm.add_argument("--chip", choices=["AX650", "AX620E"], default="AX650")
    llm.add_argument("--npu_mode", choices=["NPU1", "NPU2", "NPU3"])
    llm.add_argument("--parallel", type=int, default=1)
    llm.add_argument("--check_level", type=int, choices=range(3), default=0)
    llm.add_argument("--prefill_len", type=int, default=0)
    if generation == "llm_build":
        llm.add_argument("--kv_cache_len", type=int, default=127)
        llm.add_argument("--last_kv_cache_len", type=int, action="append", default=[])
    else:
        llm.add_argument("--max_context", type=int, default=128)
        llm.add_argument("--prefill_step_size", type=int, required=True)
    return parser


def fail_if_told(step: str) -> None:
    """Fail, vanish or hang as the settings say."""
    if SETTINGS.get("fail_at") == step:
        print(SETTINGS.get("dying_words", "layer 7: no such luck"), file=sys.stderr)
        sys.exit(3)
    if SETTINGS.get("hang_at") == step:
        grandchild = subprocess.Popen(["sleep", "600"])
        (HOME / "pids").write_text(f"{os.getpid()} {grandchild.pid}")
        time.sleep(600)


def build(args: argparse.Namespace) -> None:
    """Write the one file that ``pulsar2 build`` is asked for."""
    if not Path(args.input).is_file():
        sys.exit(f"no such file: {args.input}")
    config = json.loads(Path(args.config).read_text())
    for entry in config["quant"]["input_configs"]:
        if not Path(entry["calibration_dataset"]).is_file():
            sys.exit(f"no such archive: {entry['calibration_dataset']}")
    fail_if_told("build")
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / args.output_name).write_text(f"compiled {args.input}")
    (folder / "build_context.json").write_text("{}")
    (folder / "quant").mkdir(exist_ok=True)
    bits = SETTINGS.get("bits", 16)
    table = {op: {"out": {"bit_width": bits, "state": "ACTIVATED"}} for op in ("Conv_0", "op_8")}
    (folder / "quant/quant_axmodel.json").write_text(json.dumps({"tensor_configs": table}))
    print(LOG.format(cosine=SETTINGS.get("cosine", 0.99871), parts=SETTINGS.get("parts", 1)))


def llm_build(args: argparse.Namespace) -> None:
    """Write a file per decoder layer and the head, named as the documentation says."""
    config = json.loads((Path(args.input_path) / "config.json").read_text())
    fail_if_told("llm")
    folder = Path(args.output_path)
    folder.mkdir(parents=True, exist_ok=True)
    chunk = args.prefill_len
    if args.command == "llm_build2":
        chunk = args.prefill_step_size
        if args.prefill_len % chunk:
            sys.exit(f"prefill_len {args.prefill_len} is no multiple of {chunk}")
    kind = config["model_type"]
    for layer in range(config["num_hidden_layers"] - SETTINGS.get("leave_out", 0)):
        print(f"build layer {layer}")
        (folder / f"{kind}_p{chunk}_l{layer}_together.axmodel").write_text(f"layer {layer}")
    (folder / f"{kind}_post.axmodel").write_text("head")


def main() -> None:
    """Note the call, then answer it."""
    args = parser_of(SETTINGS["generation"]).parse_args()
    with (HOME / "journal.jsonl").open("a") as journal:
        seen = os.environ.get("FLOAT_MATMUL_USE_CONV_EU")
        journal.write(json.dumps({"args": sys.argv[1:], "conv_eu": seen}) + "\n")
    if args.command == "version":
        print(f"version: {SETTINGS.get('version', '6.0')}\ncommit: 1a2b3c4d")
    elif args.command == "build":
        build(args)
    else:
        llm_build(args)


main()
