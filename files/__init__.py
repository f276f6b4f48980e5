"""The daily files, which the collector writes and the report and `flask forget` read.

    DATA_DIR/events-2026-11-23.jsonl      the UTC day of each event's received_at
    DATA_DIR/events-2026-11-15.jsonl.gz   an older day, compressed
    DATA_DIR/refused-2026-11-23.jsonl     what was refused that day, and why
    DATA_DIR/address-key-2026-11-23       the key that day's addresses are hashed with

Each line is compact JSON in printable ASCII, and complete once its newline is on disk.
Bytes after the last newline are a torn tail, which was never acknowledged.
"""
