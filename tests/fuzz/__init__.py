"""Damaged and odd inputs by the thousand for everything that reads a file, a word or an option.

    python -m tests.fuzz                                  # every target, 2,000 inputs each (pickles: 10,000)
    python -m tests.fuzz images coco --inputs 500 --seed 7
    python -m tests.fuzz coco --index 17 --keep output/fuzz   # one input again, with its traceback

A target (:mod:`tests.fuzz.targets`) makes input number ``index`` from ``(seed, index)`` alone and gives it to the
project's own functions. Every input must end well or in an :class:`ovseg.errors.OvsegError` of one plain sentence.
Anything else is a defect: a traceback, another message, more than 20 seconds, more than 3 GB, a process that dies, a
program that is started, a network connection, a file that is written outside the input's own folder.
"""
