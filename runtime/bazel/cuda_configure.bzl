"""@cuda: says whether this machine can compile CUDA.

The answer is a constant that BUILD files load (CUDA_FOUND) with the folder
of the toolkit (CUDA_PATH). On a machine without nvcc both are empty and every
CUDA target is empty too; nothing breaks.
"""

def _cuda_configure_impl(ctx):
    nvcc = ctx.which("nvcc")
    path = str(nvcc.dirname.dirname) if nvcc else ""
    ctx.file("BUILD.bazel", "")
    ctx.file("defs.bzl", "CUDA_FOUND = %r\nCUDA_PATH = %r\n" %
                         (bool(nvcc), path))

cuda_configure = repository_rule(
    implementation = _cuda_configure_impl,
    environ = ["PATH"],
    local = True,
)
