"""Runs in an installed environment: reads calls of `diffratio` as JSON (lists of arguments), makes them one
after the other in this process, which imports torch once, and writes what each gave and whence it came."""

import contextlib
import io
import json
import sys
import traceback

import diffratio
import diffratio_kernels
from diffratio.cli import main


def call(arguments: list[str]) -> dict:
    sys.argv = ["diffratio", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            code = traceback.format_exc()
    # Without the frames of an error's box and its line breaks.
    shown, told = (" ".join(stream.getvalue().replace("│", "").split()) for stream in (out, err))
    return {"arguments": arguments, "code": code, "out": shown, "err": told}


answers = [call(arguments) for arguments in json.load(sys.stdin)]
print(json.dumps({"files": [diffratio.__file__, diffratio_kernels.__file__], "answers": answers}))
