"""`triaxial moderate serve`: a classifier over HTTP, in the forms of two known APIs."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError, import_extra
from gpt.files.regular import read_text
from launch.config.run_arguments import add_classifier_arguments, add_run_arguments, find_checkpoint_folder
from launch.moderation_server.limits import ServerLimits

_LIMITS = {
    "max_body_bytes": "bytes of a request",
    "max_texts": "texts of a request",
    "max_text_bytes": "UTF-8 bytes of a text",
    "max_waiting": "texts that wait for the model; requests beyond get status 429",
    "max_requests": "requests at the same time; requests beyond get status 429",
    "max_connections": "open connections, also without a request; more are closed with status 503",
    "max_batch_bytes": "bytes of the texts that the model gets at once",
    "read_timeout_s": "seconds that a client has to send its request",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one, which is printed (default: 8080)")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="NAME=CATEGORY",
        help="a further name of a category in both APIs, such as hate=H or TOXICITY=H; repeat it for more",
    )
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="a file with a key that every request must give (default: none)"
    )
    parser.add_argument("--log-requests", action="store_true", help="log address, status and time of each request")
    limits = parser.add_argument_group("limits")
    defaults = ServerLimits()
    for name, meaning in _LIMITS.items():
        default = getattr(defaults, name)
        option = f"--{name.replace('_', '-')}"
        limits.add_argument(option, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})")
    add_classifier_arguments(parser, layouts=False)


def run(args: argparse.Namespace) -> int:
    import_extra("aiohttp", extra="serve")
    limits = ServerLimits(**{name: getattr(args, name) for name in _LIMITS})
    if not 0 <= args.port <= 65535:
        raise ConfigError(f"--port {args.port} is invalid: must be from 0 to 65535")
    key = None if args.key_file is None else _key(args.key_file)
    find_checkpoint_folder(args.run)  # raises for a wrong path
    with args.imports():
        from launch.moderation.open_run import load_asked_classifier
        from launch.moderation_server.forms import category_names
        from launch.moderation_server.process import run_server

    classifier = load_asked_classifier(args)
    names = category_names(classifier.categories, args.name)
    for note in classifier.run.notes:
        print(note)
    classifier.scores(["the first batch takes longer than later ones"])
    run_server(
        classifier,
        host=args.host,
        port=args.port,
        limits=limits,
        names=names,
        key=key,
        logs_requests=args.log_requests,
    )
    return 0


def _key(path: Path) -> str:
    key = read_text(path).strip()
    if not key or not key.isprintable() or " " in key:
        raise ConfigError(f"--key-file {path} is invalid: must have one line with a key, without blanks")
    return key
