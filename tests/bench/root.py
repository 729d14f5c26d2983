"""A root file system with Debian's find, git, python3 and tar, those of this host, and what they work
on."""

import io
import os
import re
import shutil
import subprocess
import tarfile

PROGRAMS = ("find", "git", "python3", "tar")

# What python3 and its sqlite3 import, beside single files.
PACKAGES = ("collections", "encodings", "importlib", "json", "lib-dynload", "re", "sqlite3")

# In the archive /work/tree.tar: directories, and files in each.
DIRECTORIES = 50
FILES = 40

FILE_BYTES = 2048


def make(root, inside):
    """Makes it in an empty directory, with one of the tests' programs as /bin/inside."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "work", "usr/bin",
                 "usr/share/git-core/templates"):
        os.makedirs(os.path.join(root, name))
    shutil.copy(inside, os.path.join(root, "bin/inside"))
    for program in PROGRAMS:
        copy_program(root, f"/usr/bin/{program}")
    copy_python(root)
    archive(os.path.join(root, "work/tree.tar"))


def copy_program(root, path):
    """A program or module of the host's, with the libraries that it loads."""
    shown = subprocess.run(["ldd", path], stdout=subprocess.PIPE, text=True, check=True).stdout
    for name in [path, *re.findall(r"(/\S+) \(0x", shown)]:
        target = root + name
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy(name, target)


def copy_python(root):
    library = "/usr/lib/" + os.path.basename(os.path.realpath("/usr/bin/python3"))
    shutil.copytree(library, root + library, ignore=lambda directory, names: [
        name for name in names
        if directory == library and os.path.isdir(os.path.join(directory, name))
        and name not in (*PACKAGES, "__pycache__")])
    for name in os.listdir(os.path.join(library, "lib-dynload")):
        if name.startswith("_sqlite3"):
            copy_program(root, os.path.join(library, "lib-dynload", name))


def archive(path):
    with tarfile.open(path, "w") as tar:
        for directory in range(DIRECTORIES):
            for number in range(FILES):
                member = tarfile.TarInfo(f"tree/dir{directory}/file{number}")
                member.size = FILE_BYTES
                tar.addfile(member, io.BytesIO(b"x" * FILE_BYTES))
