"""`triaxial moderate export`: a classifier as a folder for transformers with a model card, or as an ONNX file."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError
from launch.config.run_arguments import add_run_arguments, find_checkpoint_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="write a new folder for transformers")
    parser.add_argument(
        "--with-code",
        action="store_true",
        help="if transformers has no class for this head, write one into the folder; it is loaded with "
        "trust_remote_code=True",
    )
    parser.add_argument("--onnx", type=Path, metavar="FILE.onnx", help="write a new ONNX file")


def run(args: argparse.Namespace) -> int:
    if args.to is None and args.onnx is None:
        raise ConfigError("there is nothing to write. Give --to FOLDER or --onnx FILE.onnx")
    if args.with_code and args.to is None:
        raise ConfigError("--with-code needs --to FOLDER")
    find_checkpoint_folder(args.run)  # raises for a wrong path
    with args.imports():
        from launch.moderation.card import model_card
        from launch.moderation.export import export_classifier
        from launch.moderation.onnx_file import export_onnx
        from launch.moderation.open_run import load_classifier

    classifier = load_classifier(args.run, step=args.step, device="cpu")
    calibration = "calibrated as the run's" if classifier.decisions.calibrators else "without calibration, as the run's"
    if args.to is not None:
        found = export_classifier(classifier, args.to, with_code=args.with_code, card=model_card(classifier))
        code = ", with trust_remote_code=True" if found.needs_code else ""
        print(f"{found.folder}: {found.architecture}{code}; model card in README.md")
        print(f"verified: probabilities of {found.texts} texts within {found.max_error:.1e} of ours in fp32")
        print(f"its probabilities, sigmoid(logits), are {calibration}; thresholds.json has the thresholds")
    if args.onnx is not None:
        error = export_onnx(classifier, args.onnx)
        print(f"{args.onnx}: probabilities within {error:.1e} of ours by onnxruntime, {calibration}")
    return 0
