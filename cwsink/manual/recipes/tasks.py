# tasks.py
import celery, cwsink, fapilog

cwsink.install()
logger = fapilog.get_logger(settings=fapilog.Settings())
app = celery.Celery("tasks")


@app.task
def place(order):
    logger.info("order placed", order=order)
