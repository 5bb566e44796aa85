"""`triaxial moderate export`: a classifier as a folder for transformers, with a model card, and as an ONNX file."""

import argparse
from pathlib import Path

from launch.moderation.card import model_card
from launch.moderation.export import export_classifier
from launch.moderation.open_run import load_classifier
from launch.runs.saved_run import add_run_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new folder for transformers")
    parser.add_argument(
        "--with-code",
        action="store_true",
        help="if transformers has no class for this head, write one into the folder; it is loaded with "
        "trust_remote_code=True",
    )


def run(args: argparse.Namespace) -> int:
    card = model_card(load_classifier(args.run, step=args.step, device="cpu"))
    classifier = load_classifier(args.run, step=args.step, device="cpu", raw=True)
    found = export_classifier(classifier, args.to, with_code=args.with_code, card=card)
    code = ", with trust_remote_code=True" if found.needs_code else ""
    print(f"{found.folder}: {found.architecture}{code}; model card in README.md")
    print(f"verified: probabilities of {found.texts} texts within {found.max_error:.1e} of ours in fp32")
    print("the folder gives sigmoid(logits) without calibration; thresholds.json has the run's thresholds")
    return 0
