"""`cwsink doctor`: every question behind "my logs do not arrive", one after the other.

A *question* is a small function in a module of its subject (given, place, reach, progress, application). It looks, and
yields *findings*: what was seen, whether that is all right, and what to type if it is not. The *patient* is what the
questions are about: the settings, the root and the spools, as the environment of a worker names them. `examination`
asks all questions, each within its time, and whatever goes wrong in one of them.

No question changes anything, here or in AWS. Only `trial` appends a record, and it is asked only with `--probe`.

What an application's code passes cannot be seen from another process. But its writers have left in the spool where they
send and how. So the findings about AWS are about the spools that are there, and about the target that the environment
names.
"""
