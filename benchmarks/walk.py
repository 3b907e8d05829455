"""Measure the minimum of a second pass, as a whole program: scandir and stat of every file below a folder."""

import os
import sys

ahead, files = [os.fsencode(sys.argv[1])], 0
while ahead:
    with os.scandir(ahead.pop()) as found:
        for each in found:
            if each.is_file(follow_symlinks=False):
                each.stat(follow_symlinks=False)
                files += 1
            elif each.is_dir(follow_symlinks=False):
                ahead.append(each.path)
print(files)
