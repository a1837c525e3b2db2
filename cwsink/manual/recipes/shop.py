# shop.py
import cwsink, fapilog

cwsink.install()
logger = fapilog.get_logger(settings=fapilog.Settings())


def app(environ, start_response):
    logger.info("request", path=environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello\n"]
