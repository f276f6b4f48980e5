#!/usr/bin/env bash
# Drop every event whose line holds TEXT, from all files of DATA_DIR, beside a running server.
#
#     deploy/drop-lines.sh DATA_DIR TEXT       TEXT as it stands in the file: '"ip":"203.0.113.9"'
#
# A plain `grep -v` would lose what is appended meanwhile.  This takes the locks that
# storage.py takes: the directory's, so that nobody appends, compresses or deletes, and
# then the file's, so that no event is between its write and its sync (it would be
# written again, dropped or not).
# Events wait while one day is filtered; where that takes more than a second they are answered 503.
# Status 1: a file is in use or damaged, or the disk is full.  It is as it was; try again.
set -uo pipefail
export LC_ALL=C

directory=${1:?want a data directory} text=${2:?want the text of the lines to drop}
if ! [ -d "$directory" ] || ! [ -r "$directory" ] || ! [ -w "$directory" ] || ! [ -x "$directory" ]; then
    echo "drop-lines.sh: $directory: want a directory that I may read and write" >&2
    exit 1
fi
draft=$directory/.drop-lines.$$
claim=$directory/events-housekeeping.claim
trap 'rm -f "$draft"' EXIT

may_hold_text() {
    [ -f "$1" ] && { zgrep -qaF -e "$text" "$1" || [ $? != 1 ]; } # 2: it cannot be read
}

without_text() {
    grep -avF -e "$text" || [ $? = 1 ] # 1: no line is left
}

# With the file open as 9: it still has its name.
is_named() {
    [ "$1" -ef /dev/fd/9 ]
}

like() {
    cp --preserve=mode,ownership --attributes-only "$1" "$draft"
}

replace() {
    sync "$draft" && mv "$draft" "$1" && sync "$directory"
}

# What follows the last newline is a torn tail: grep would make a line of it.
drop_from_plain() {
    flock 8 && is_named "$1" && flock --timeout 1 9 && like "$1" &&
        head -n "$(wc -l <&9)" "$1" | without_text >"$draft" && replace "$1"
}

# Only housekeeping writes these.
drop_from_gzip() {
    like "$1" && gzip -dc <&9 | without_text | gzip >"$draft" &&
        flock 8 && is_named "$1" && { [ ! -e "$claim" ] || flock --nonblock "$claim" true; } &&
        replace "$1"
}

status=0
for file in "$directory"/events-*.jsonl "$directory"/events-*.jsonl.gz; do
    may_hold_text "$file" || continue
    drop=drop_from_plain
    [ "${file%.gz}" = "$file" ] || drop=drop_from_gzip
    [ ! -L "$file" ] && ("$drop" "$file") 8<"$directory" 9<"$file" && ! may_hold_text "$file" || status=1
done
[ $status = 0 ] || echo "drop-lines.sh: lines may be left; try again" >&2
exit $status
