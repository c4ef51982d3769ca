"""@system: the libraries of the distribution, one cc_library each.

Headers under /usr/include need no flags. Headers elsewhere (HDF5) are
reached through a link in this repository, because cc_library takes no
absolute include folder. A library that is missing stops the build with the
name of the Debian package that brings it.
"""

# target -> (pkg-config modules, Debian package)
_PKG_CONFIG = {
    "absl": ([
        "absl_base",
        "absl_cleanup",
        "absl_failure_signal_handler",
        "absl_flags",
        "absl_flags_parse",
        "absl_flags_reflection",
        "absl_flags_usage",
        "absl_flat_hash_map",
        "absl_flat_hash_set",
        "absl_span",
        "absl_stacktrace",
        "absl_status",
        "absl_statusor",
        "absl_strings",
        "absl_str_format",
        "absl_symbolize",
        "absl_synchronization",
        "absl_time",
    ], "libabsl-dev"),
    "benchmark": (["benchmark"], "libbenchmark-dev"),
    "crypto": (["libcrypto"], "libssl-dev"),
    "gtest": (["gmock", "gtest"], "libgmock-dev"),
    "gtest_main": (["gmock_main", "gmock", "gtest"], "libgmock-dev"),
    "hdf5": (["hdf5-serial"], "libhdf5-dev"),
    "json": (["nlohmann_json"], "nlohmann-json3-dev"),
    "lzma": (["liblzma"], "liblzma-dev"),
    "mpi": (["ompi-c"], "libopenmpi-dev"),
    "openblas": (["openblas"], "libopenblas-pthread-dev"),
    "pcre2": (["libpcre2-8"], "libpcre2-dev"),
    "protobuf": (["protobuf"], "libprotobuf-dev"),
    "spdlog": (["spdlog"], "libspdlog-dev"),
    "xxhash": (["libxxhash"], "libxxhash-dev"),
    "zlib": (["zlib"], "zlib1g-dev"),
    "zstd": (["libzstd"], "libzstd-dev"),
}

# What pkg-config does not say. Open MPI's C++ bindings, which nobody needs, do
# not link.
_DEFINES = {
    "mpi": ["OMPI_SKIP_MPICXX"],
}

def _fail_missing(what, package):
    fail(("\n\n%s was not found on this machine.\n" +
          "Install it with:  apt-get install %s\n" +
          "or let ./bazelw install everything that Cubit needs.\n") %
         (what, package))

def _pkg_config(ctx, option, modules, package):
    result = ctx.execute(["pkg-config", option] + modules)
    if result.return_code != 0:
        _fail_missing("pkg-config module " + " ".join(modules), package)
    return [f for f in result.stdout.strip().split(" ") if f]

def _library(ctx, name, modules, package):
    cflags = _pkg_config(ctx, "--cflags", modules, package)
    links = _pkg_config(ctx, "--libs", modules, package)
    defines = [f[2:] for f in cflags if f.startswith("-D")]
    defines += _DEFINES.get(name, [])
    includes = []
    for index, flag in enumerate([f for f in cflags if f.startswith("-I")]):
        folder = "include_%s_%d" % (name, index)
        ctx.symlink(flag[2:], folder)
        includes.append(folder)

    # A library that is not on the loader's path (OpenBLAS keeps several
    # flavours apart) is also looked for where it was linked.
    rpaths = [
        "-Wl,-rpath," + f[2:].rstrip("/")
        for f in links
        if f.startswith("-L")
    ]
    return """
cc_library(
    name = "{name}",
    hdrs = glob([{globs}]),
    defines = {defines},
    includes = {includes},
    linkopts = {linkopts},
)
""".format(
        name = name,
        globs = ", ".join(["\"%s/**\"" % i for i in includes]),
        defines = repr(defines),
        includes = repr(includes),
        linkopts = repr(links + rpaths),
    )

def _system_libraries_impl(ctx):
    if not ctx.which("pkg-config"):
        _fail_missing("pkg-config", "pkg-config")
    protoc = ctx.which("protoc")
    if not protoc:
        _fail_missing("protoc", "protobuf-compiler")
    ctx.symlink(protoc, "protoc")
    build = ["package(default_visibility = [\"//visibility:public\"])\n",
             "exports_files([\"protoc\"])\n"]
    for name, (modules, package) in sorted(_PKG_CONFIG.items()):
        build.append(_library(ctx, name, modules, package))
    ctx.file("BUILD.bazel", "".join(build))

system_libraries = repository_rule(
    implementation = _system_libraries_impl,
    environ = ["PATH", "PKG_CONFIG_PATH"],
    local = True,
)
