"""Fuzz targets: one function LLVMFuzzerTestOneInput, used in two ways."""

load("//runtime/bazel:cubit.bzl", "cubit_binary", "cubit_test")

def cubit_fuzz_target(name, srcs = None, deps = [], corpus = None):
    """A libFuzzer target and the test that replays its corpus.

    `srcs` (default NAME.cc) define LLVMFuzzerTestOneInput. The files below
    `corpus` (default corpus/NAME) are inputs that once mattered: seeds, and
    whatever a run of the fuzzer found.

    NAME_test needs no fuzzer: it feeds every file of the corpus to the function
    and is part of //... and of its sanitizer configurations. NAME is the fuzzer
    itself; it wants clang's runtime library and is built on request:

        bazel build --config=fuzz //tests/fuzz:NAME
        bazel-bin/tests/fuzz/NAME -max_total_time=600 CORPUS_FOLDER
    """
    srcs = srcs or [name + ".cc"]
    inputs = native.glob([(corpus or "corpus/" + name) + "/**"])
    if not inputs:
        fail("%s has no corpus; one seed at least is wanted" % name)
    cubit_test(
        name = name + "_test",
        size = "small",
        srcs = srcs,
        args = ["$(rootpath %s)" % inputs[0]],
        data = inputs,
        deps = deps + ["//tests/fuzz:replay"],
    )
    cubit_binary(
        name = name,
        testonly = True,
        srcs = srcs,
        linkopts = ["-fsanitize=fuzzer"],
        tags = ["manual"],
        deps = deps,
    )
