"""Macros of the project: one place for compiler flags and for the rule that
an op is a header, a reference and one implementation per back end."""

load("@cuda//:defs.bzl", "CUDA_FOUND")
load("//runtime/bazel:cuda.bzl", "cuda_library")

_WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wconversion",
    "-Wno-sign-conversion",
    "-Werror",
]

# AVX2 and FMA: every x86-64 server since 2013. //runtime:cpu_check refuses
# older processors in words.
_ARCHITECTURE = select({
    "//:x86_64": ["-march=x86-64-v3"],
    "//conditions:default": [],
})

# Loops of the ops: vectorised, with `#pragma omp simd` where the compiler cannot
# see that iterations are independent. None of these changes a value: there is
# no fast-math, so sums keep the order in which they are written and NaN and Inf
# pass through.
KERNEL_COPTS = [
    "-O3",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
]

def _copts(copts):
    # Only the simd pragmas of OpenMP: loops are vectorised, never threaded.
    return ["-std=c++17", "-fopenmp-simd"] + _WARNINGS + _ARCHITECTURE + copts

def cubit_library(name, srcs = [], hdrs = [], deps = [], copts = [], **kwargs):
    native.cc_library(
        name = name,
        srcs = srcs,
        hdrs = hdrs,
        deps = deps,
        copts = _copts(copts),
        **kwargs
    )

# Where //launch:bundle puts shared libraries. DT_RPATH, because DT_RUNPATH does
# not hold for the libraries that libraries need.
_BUNDLE_LINKOPTS = ["-Wl,--disable-new-dtags,-rpath,'$$ORIGIN/../lib'"]

def cubit_binary(name, srcs = [], deps = [], copts = [], linkopts = [], **kwargs):
    native.cc_binary(
        name = name,
        srcs = srcs,
        deps = deps,
        copts = _copts(copts),
        linkopts = _BUNDLE_LINKOPTS + linkopts,
        **kwargs
    )

def cubit_worker_binary(name, srcs, deps = [], front = "//launch:worker_start", cpu_deps = [], cuda_deps = [], **kwargs):
    """A program with a worker for each back end, of the same objects.

    NAME is what a user runs: it looks for GPUs and becomes NAME_cpu or
    NAME_cuda (launch/worker_choice.h). NAME_cuda exists where nvcc is found.
    `front` is NAME's main; //launch:launcher_main also starts ranks. Each
    worker has its own implementations besides //ops's: `cpu_deps`, `cuda_deps`.
    """
    cubit_library(
        name = name + "_main",
        srcs = srcs,
        deps = deps,
        alwayslink = True,
        **kwargs
    )
    workers = [name + "_cpu"]
    cubit_binary(
        name = name + "_cpu",
        deps = [
            ":" + name + "_main",
            "//ops:cpu",
        ] + cpu_deps,
        **kwargs
    )
    if CUDA_FOUND:
        workers.append(name + "_cuda")
        cubit_binary(
            name = name + "_cuda",
            deps = [
                ":" + name + "_main",
                "//ops:cuda",
            ] + cuda_deps,
            **kwargs
        )
    cubit_binary(
        name = name,
        data = workers,
        deps = [front],
        **kwargs
    )

def cubit_test(name, size, srcs = None, deps = [], copts = [], **kwargs):
    """A GoogleTest program; `size` is required, `srcs` defaults to name.cc."""
    native.cc_test(
        name = name,
        size = size,
        srcs = srcs or [name + ".cc"],
        deps = deps + ["@system//:gtest_main"],
        copts = _copts(copts),
        **kwargs
    )

def cubit_cuda_test(name, size, srcs, deps = [], copts = [], tags = [], **kwargs):
    """A GoogleTest program on a GPU, linked with //ops:cuda.

    Its main (//tests/testing:cuda_test_main) puts what `new` returns into
    memory that the GPU can reach and makes launches wait, so a test of an op on
    host vectors runs as it is; `//ops:cpu` is left out of `deps`. Skips every
    case where there is no GPU; no target where there is no nvcc.
    """
    if not CUDA_FOUND:
        return
    native.cc_test(
        name = name,
        size = size,
        srcs = srcs,
        deps = [dep for dep in deps if dep != "//ops:cpu"] + [
            "//ops:cuda",
            "//tests/testing:cuda_test_main",
            "@system//:gtest",
        ],
        copts = _copts(copts),
        tags = tags + ["cuda"],
        **kwargs
    )

def cubit_op_test(name, size, deps = [], **kwargs):
    """One source, NAME.cc, tested with both back ends: NAME and, for a NAME of
    x_test, x_cuda_test. `deps` hold "//ops:cpu"."""
    cubit_test(name = name, size = size, deps = deps, **kwargs)
    cubit_cuda_test(
        name = name[:-len("_test")] + "_cuda_test",
        size = size,
        srcs = [name + ".cc"],
        deps = deps,
        **kwargs
    )

def cubit_op(name, deps = [], cpu_srcs = None, cpu_deps = [], cuda_srcs = None, cuda_deps = [], cuda_libraries = [], reference_deps = [], reference = True):
    """An op: NAME (header), NAME_reference, NAME_cpu and NAME_cuda.

    The implementation is chosen when a program is linked (//ops:cpu or
    //ops:cuda), so callers depend on NAME alone. `cpu_srcs` defaults to
    NAME_cpu.cc; NAME_cuda exists where `cuda_srcs` are given.
    """
    cubit_library(
        name = name,
        hdrs = [name + ".h"],
        deps = deps,
    )
    if reference:
        cubit_library(
            name = name + "_reference",
            hdrs = [name + "_reference.h"],
            deps = [":" + name] + reference_deps,
        )
    cubit_library(
        name = name + "_cpu",
        srcs = cpu_srcs or [name + "_cpu.cc"],
        deps = [":" + name] + cpu_deps,
        copts = KERNEL_COPTS,
        alwayslink = True,
    )
    if cuda_srcs:
        cuda_library(
            name = name + "_cuda",
            srcs = cuda_srcs,
            deps = [":" + name, "//runtime:device_cuda"] + cuda_deps,
            cuda_libraries = cuda_libraries,
        )

def cubit_proto_library(name, src, deps = []):
    """C++ classes of one .proto file, made by the system's protoc."""
    base = src[:-len(".proto")]
    native.genrule(
        name = name + "_gen",
        srcs = [src],
        outs = [base + ".pb.h", base + ".pb.cc"],
        cmd = "$(location @system//:protoc) --proto_path=. " +
              "--cpp_out=$(GENDIR) $(SRCS)",
        tools = ["@system//:protoc"],
    )
    native.cc_library(
        name = name,
        srcs = [base + ".pb.cc"],
        hdrs = [base + ".pb.h"],
        copts = ["-std=c++17"],
        deps = deps + ["@system//:protobuf"],
    )
