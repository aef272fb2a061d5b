"""Starts a verb on several processes and machines, watches over them, and leaves none behind.

`job` reads what is wanted, `commands` says what that is to start, `processes` starts and ends
processes, `supervise` decides what happens when one dies, hangs or is to stop.

MindSpore's `msrun` is what users know, and `DRY_RUN=1` prints it. The processes are started here
all the same, with the environment that msrun would give them: msrun waits ten minutes in silence
for a worker that died before the cluster had formed, ends workers without letting them save, and
leaves all of them running when it is terminated itself.
"""
