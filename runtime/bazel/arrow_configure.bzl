"""@arrow: Apache Arrow's Parquet reader, where this machine has it.

Debian has no Arrow, so `./bazelw install_arrow` takes headers and libraries out
of PyPI's pyarrow into the user's cache (docs/decisions/0014-arrow.md); no
Python is used afterwards. ARROW_FOUND says to BUILD files whether they are
there. On a machine without them @arrow//:parquet is empty, the reader of
parquet files is one that says how to get them, and nothing breaks.
"""

# What bazelw installs: one pinned version, because the headers of each want
# their own libraries.
_VERSION = "26.0.1"
_LIBRARIES = ["libparquet.so.2600", "libarrow.so.2600"]

def _folder(ctx):
    environ = ctx.os.environ
    if environ.get("CUBIT_ARROW"):
        return ctx.path(environ["CUBIT_ARROW"])
    cache = environ.get("XDG_CACHE_HOME", "")
    if not cache.startswith("/"):
        cache = environ.get("HOME", "/nonexistent") + "/.cache"
    return ctx.path(cache + "/cubit/arrow-" + _VERSION)

def _arrow_configure_impl(ctx):
    folder = _folder(ctx)
    found = folder.get_child("include").exists
    for library in _LIBRARIES:
        found = found and folder.get_child("lib").get_child(library).exists
    ctx.file("defs.bzl", "ARROW_FOUND = %r\n" % found)
    if not found:
        ctx.file("BUILD.bazel", "")
        return
    ctx.symlink(folder.get_child("include"), "include")
    links = ["-L%s/lib" % folder, "-Wl,-rpath,%s/lib" % folder]
    ctx.file("BUILD.bazel", """
cc_library(
    name = "parquet",
    hdrs = glob(["include/**"]),
    includes = ["include"],
    linkopts = {linkopts},
    visibility = ["//visibility:public"],
)
""".format(linkopts = repr(links + ["-l:" + name for name in _LIBRARIES])))

arrow_configure = repository_rule(
    implementation = _arrow_configure_impl,
    environ = ["CUBIT_ARROW", "HOME", "XDG_CACHE_HOME"],
    local = True,
)
