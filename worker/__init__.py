"""A gunicorn worker whose clients share syncs: it answers each complete request once, in order.

An event passes through one round of the loop like this:

    receive()     accept and recv; llhttp turns bytes into requests
    call_app()    for every complete request: parse, validate, Store.enqueue()
    answer()      for each of them: iterate over the response.  The first one waits in
                  Store.wait(), which flushes the batch: one write and one sync for all
                  events of the round.  Then the responses of each connection leave together

PEP 3333 lets an application start its response as late as in the first step of the
iteration, and that is where ours waits for the disk.  Any other WSGI server runs the same
application, only slower.

Importing this raises ImportError where there is no epoll, or no httptools.
"""

from worker.loop import RoundWorker

__all__ = ["RoundWorker"]
