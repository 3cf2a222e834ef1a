"""The script of `make test-gpu`, as far as it goes on a CPU."""

import sys

import pytest

from tests import gpu


def checked(monkeypatch, capsys, *names):
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--only", *names])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    return ended.value.code, capsys.readouterr().out


def test_what_holds_is_said_with_figures(monkeypatch, capsys):
    code, out = checked(monkeypatch, capsys, "parity", "no_waiting")
    assert not code
    assert "parity: holds" in out
    assert "largest difference 0.0e+00" in out
    assert out.rstrip().endswith("all hold")


def test_what_does_not_hold_ends_with_code_1_and_the_others_are_tried(monkeypatch, capsys):
    def bad(machine):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu, "CHECKS", [bad, gpu.no_waiting])
    code, out = checked(monkeypatch, capsys, "bad", "no_waiting")
    assert code == 1
    assert "bad: DOES NOT HOLD" in out
    assert "no such kernel" in out
    assert "no_waiting: holds" in out
    assert out.rstrip().endswith("bad failed")
