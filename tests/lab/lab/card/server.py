"""The device server's process: all functions of all cards, and their faults.

Usage: server.py CARDS FUNCTIONS [VENDOR:DEVICE]   (in a run's folder)

    card0.0.sock ...   a vfio-user socket per function, for QEMU
    southbridge.sock   and one for what the board lacks
    inject.sock        one line in, one line out; from the guest's INJECT and
                       from this machine

A fault is a function in COMMANDS: it gets the functions of one card and the
words after its name, and returns the line that is given back.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable

from . import functions, protocol
from .pci import Function

Card = list[Function]


def dead(card: Card, words: list[str]) -> str:
    """the card has fallen off the bus: everything reads as ones"""
    return _set_dead(card, True)


def alive(card: Card, words: list[str]) -> str:
    """the card answers again"""
    return _set_dead(card, False)


def _set_dead(card: Card, state: bool) -> str:
    for function in card:
        function.faults.dead = state
        if isinstance(function, functions.Gpu):
            function.set_dead(state)
    return "ok"


def noflr(card: Card, words: list[str]) -> str:
    """a function-level reset is accepted and does nothing"""
    for function in card:
        function.faults.flr_ignored = True
    return "ok"


def flr(card: Card, words: list[str]) -> str:
    """a function-level reset works again, and is announced"""
    for number, function in enumerate(card):
        function.faults.flr_ignored = False
        function.set_flr_capable(functions.KINDS[number][3])
    return "ok"


def noflrcap(card: Card, words: list[str]) -> str:
    """no function-level reset is announced (read at the next rescan)"""
    for function in card:
        function.set_flr_capable(False)
    return "ok"


def slow(card: Card, words: list[str]) -> str:
    """each access to config space takes so many milliseconds"""
    seconds = float(words[0]) / 1000
    for function in card:
        function.faults.slow = seconds
    return "ok"


def well(card: Card, words: list[str]) -> str:
    """every fault of the card is undone"""
    slow(card, ["0"])
    flr(card, [])
    return alive(card, [])


def stat(card: Card, words: list[str]) -> str:
    """what has happened to the card, as JSON"""
    return json.dumps({one.name: one.statistics() for one in card})


COMMANDS: dict[str, Callable[[Card, list[str]], str]] = {
    one.__name__: one for one in (dead, alive, noflr, flr, noflrcap, slow, well, stat)
}


def obey(cards: list[Card], line: str) -> str:
    """Carry out `cardN COMMAND [WORDS]`; what comes back starts with error
    where it could not be done."""
    words = line.split()
    if len(words) < 2 or words[1] not in COMMANDS:
        return f"error: usage: cardN {'|'.join(COMMANDS)} [...]"
    number = words[0].removeprefix("card")
    if not number.isdigit() or int(number) >= len(cards):
        return f"error: no {words[0]}; there are {len(cards)} from card0"
    try:
        return COMMANDS[words[1]](cards[int(number)], words[2:])
    except (ValueError, IndexError) as failed:
        return f"error: {failed}"


def _listen(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(4)
    return listener


def _serve_function(function: Function, listener: socket.socket) -> None:
    while True:
        line, _ = listener.accept()
        try:
            protocol.converse(function, line)
        except (EOFError, ConnectionError):
            pass
        except Exception:  # the log is where a bug of ours can be found
            traceback.print_exc()
        line.close()


def _serve_control(cards: list[Card], line: socket.socket) -> None:
    with line, line.makefile("rw") as stream:
        for text in stream:
            stream.write(obey(cards, text) + "\n")
            stream.flush()


def main(arguments: list[str]) -> None:
    """Serve until killed."""
    count, kinds = int(arguments[0]), int(arguments[1])
    ids = None
    if len(arguments) > 2:
        vendor, device = arguments[2].split(":")
        ids = int(vendor, 16) << 16 | int(device, 16)
    cards: list[Card] = []
    for number in range(count):
        cards.append([
            functions.make(kind, f"card{number}.{kind}", ids if kind == 0 else None)
            for kind in range(kinds)
        ])
    for function in (*itertools.chain(*cards), functions.southbridge()):
        listener = _listen(f"{function.name}.sock")
        threading.Thread(
            target=_serve_function, args=(function, listener), daemon=True
        ).start()
    control = _listen("inject.sock")
    print("serving", flush=True)
    while True:
        line, _ = control.accept()
        threading.Thread(
            target=_serve_control, args=(cards, line), daemon=True
        ).start()


if __name__ == "__main__":
    main(sys.argv[1:])
