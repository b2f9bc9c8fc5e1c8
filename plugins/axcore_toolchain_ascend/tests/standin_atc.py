# ruff: noqa: T201
"""A stand-in for ``atc``, which cannot be had in tests. It compiles nothing.

It takes the documented flags and no others, demands that the named shapes are those of the ONNX
file's inputs, and leaves what ``atc`` leaves. ``settings.json`` beside it chooses the name of the
result; ``journal.jsonl`` beside it receives every call.
"""

import argparse
import json
import sys
from pathlib import Path

import onnx

HOME = Path(__file__).resolve().parent
SETTINGS = json.loads((HOME / "settings.json").read_text())
SOCS = ["Ascend310P1", "Ascend310P3", "Ascend910A", "Ascend910B1", "Ascend910B4"]
MODES = ["fp16", "origin", "cube_fp16in_fp32out", "mixed_float16", "mixed_bfloat16"]


def parsed() -> argparse.Namespace:
    """Return the flags, or exit as argparse does."""
    parser = argparse.ArgumentParser("atc", allow_abbrev=False)
    parser.add_argument("--framework", choices=["5"], required=True)
    for flag in ("--model", "--output", "--input_shape"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--input_format", choices=["NCHW", "ND"], default="NCHW")
    parser.add_argument("--soc_version", choices=SOCS, required=True)
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--precision_mode_v2", choices=MODES)
    precision.add_argument("--precision_mode", choices=["force_fp16", "must_keep_origin_dtype"])
    parser.add_argument("--op_select_implmode", choices=["high_performance", "high_precision"])
    parser.add_argument("--log", choices=["debug", "info", "warning", "error", "null"])
    return parser.parse_args()


def shapes(model: onnx.ModelProto) -> str:
    """Return the inputs of a model as ``--input_shape`` spells them."""
    spelled = []
    for value in model.graph.input:
        dims = ",".join(str(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        spelled.append(f"{value.name}:{dims}")
    return ";".join(spelled)


def main() -> None:
    """Note the call, then answer it."""
    with (HOME / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps(sys.argv[1:]) + "\n")
    args = parsed()
    model = onnx.load(args.model, load_external_data=False)
    if args.input_shape != shapes(model):
        sys.exit(f"E10001: --input_shape {args.input_shape} is not {shapes(model)}")
    Path("fusion_result.json").write_text("[]")
    path = Path(f"{args.output}{SETTINGS.get('suffix', '')}.om")
    path.write_text(json.dumps({"onnx": str(Path(args.model).resolve())}))
    print("ATC run success, welcome to the next use.")


main()
