"""Runs programs that nobody has read, and says whether they pass a test.

Four processes, each of which trusts only those before it:

    host        the command; `runner.py`
    supervisor  a bare interpreter that holds the limits of time and memory; `supervisor.py`
    judge       holds the test; first process of its own namespaces; `judge.py`
    program     holds what is judged; first process of a process namespace below; `program.py`

What the program sees: the interpreter's standard library and the system's shared libraries, read
only; a private, small `/tmp`; `/dev/null` and its like. No network, no other process, no `/proc`,
no environment, no file of the host, no descriptor but the two on which it is asked. It has no
privileges and cannot gain any. Its last descendant ends with it.

Where a kernel does not give one of these, nothing is run.

The verdict cannot be forged from inside, because what decides is not inside: the judge keeps the
test and the expected answers, and only plain values cross (`values.py`). The program is asked for
`f(arguments)` and answers; it can answer wrongly, or not at all, and that is all it can do.

What remains:

- Kernel errors. A sandbox of namespaces is as strong as the kernel; for a determined attacker use a
  virtual machine.
- A program may recognise the questions: nothing hides the arguments from the one who is asked.
- A program may change the lists and dictionaries that it is given, as in one interpreter. A test
  that computes what it expects from an argument after the call can be led astray by that.
- Objects of the program's own classes do not cross; a test that needs their methods fails.
- Programs and tests have Python's standard library and no installed package.
- Other programs on the machine share its processors; limits of time hold for both.
"""
