"""The ``slimdiff`` command. Commands parse, call the library and print; they hold no logic.

Exit codes: 0 success, 2 bad input or a request that cannot be met (a message, no traceback),
130 after Ctrl-C or a request to end (SIGTERM).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings

import click
from safetensors import SafetensorError

from .. import __version__
from ..errors import SlimdiffError
from ..memory import OUT_OF_MEMORY
from .bench import bench
from .demo import demo
from .draw import generate
from .evaluate import evaluate
from .export import export
from .finish import finish
from .inspection import inspect
from .job import slim
from .lora import lora
from .merge import merge
from .prompts import prompts
from .report import report
from .steps import apply, calibrate, compare, plan
from .sweep import sweep

__all__ = ["main"]

_VERBOSE = "SLIMDIFF_VERBOSE"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="slimdiff")
def cli() -> None:
    """Make diffusion models smaller and faster without training.

    Start: slimdiff slim emoji -o emoji-slim
    """
    _quiet_hosts()


_COMMANDS = (
    *(slim, calibrate, merge, finish, plan, apply, compare, evaluate, report),
    *(bench, sweep, inspect, generate, demo, prompts, export, lora),
)
for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the command line and exit with its code."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except SlimdiffError as error:
        _fail(str(error))
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except OUT_OF_MEMORY as error:
        reason = "".join(str(error).splitlines()[:1])
        _fail(f"Out of memory with a single prompt ({reason}). Lower --width and --height.")
    except OSError as error:
        _fail(
            f"{error.strerror or error}: '{error.filename or '-'}'. Check space and permissions."
        )
    except SafetensorError as error:
        _fail(f"A tensor file cannot be read or written ({error}). Check space and permissions.")
    except Exception as error:
        if _VERBOSE in os.environ:
            raise
        reason = str(error).strip().splitlines()[:1]
        _fail(
            f"Unexpected {type(error).__name__}: {''.join(reason)}. This is a bug in slimdiff or "
            f"its surroundings; set {_VERBOSE}=1 to see where it happened."
        )
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _fail(message: str) -> None:
    click.echo(f"Error: {message}", err=True)
    sys.exit(2)


def _quiet_hosts() -> None:
    """Silence chatter of the host libraries that says nothing about the user's job."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    if _VERBOSE in os.environ:
        return
    warnings.filterwarnings("ignore", module="(diffusers|transformers|torch|huggingface_hub).*")
    logging.getLogger("torch").setLevel(logging.ERROR)
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
