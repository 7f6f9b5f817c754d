"""`diffratio`: one file per command."""

import sys


def main() -> None:
    """Entry point of the `diffratio` script; names the extra to install where a package is missing."""
    try:
        import typer

        from .bench import bench
        from .demo import demo
        from .doctor import doctor
        from .eval import eval
        from .flops import flops
        from .kernels import kernels
        from .plan import plan
        from .plot import plot
        from .sample import sample
        from .train import train
        from .version import options

        app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
        app.callback()(options)
        for command in (demo, train, sample, eval, plot, bench, plan, flops, kernels, doctor):
            app.command()(command)
        app()
    except ModuleNotFoundError as error:
        sys.exit(f"diffratio needs {error.name}: pip install 'diffratio-kernels[demo,train]'")
