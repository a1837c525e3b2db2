"""`cwsink top`: what is on its screen, without the drawing (that is cwsink.cli.top).

`trend` knows how spools move, from looks (pure). `columns` has the words of its table (pure). `board` is what the keys
change. `keys` has the terminal give them, and puts it back.
"""
