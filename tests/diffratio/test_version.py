import sys

import diffratio
import diffratio_kernels
from diffratio.cli import main


def test_package_and_command_tell_the_version(monkeypatch, capsys):
    assert diffratio.__version__ == diffratio_kernels.__version__
    monkeypatch.setattr(sys, "argv", ["diffratio", "--version"])
    main()
    assert capsys.readouterr().out == f"diffratio {diffratio.__version__}\n"
