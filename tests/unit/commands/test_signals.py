"""Signals that a command handles."""

import signal

from dfer_deploy.commands.signals import handled


def test_an_ignored_signal_stays_ignored() -> None:
    """``nohup`` ignores SIGHUP, and a shell ignores SIGINT for what it starts in the background."""
    caught: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    other = signal.getsignal(signal.SIGUSR1)
    try:
        with handled([signal.SIGHUP, signal.SIGUSR1], lambda number, frame: caught.append(number)):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
        assert caught == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR1) is other
    finally:
        signal.signal(signal.SIGHUP, before)
