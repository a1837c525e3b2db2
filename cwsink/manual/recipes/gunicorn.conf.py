# gunicorn.conf.py
from cwsink.gunicorn import on_exit, post_fork, when_ready
