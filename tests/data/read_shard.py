# SPDX-License-Identifier: Apache-2.0
"""Reads a token shard in the two lines that product.md promises.

Prints the tokens, the document offsets and the attributes, one item a line.
"""

import sys

import h5py

shard = h5py.File(sys.argv[1])
tokens = shard["tokens"][:]

print("tokens", tokens.dtype, *tokens)
print("document_offsets", shard["document_offsets"].dtype,
      *shard["document_offsets"][:])
for name in sorted(shard.attrs):
    value = shard.attrs[name]
    print(name, value.decode() if isinstance(value, bytes) else value)
print("filters", shard["tokens"].fletcher32, shard["tokens"].compression,
      shard["document_offsets"].fletcher32)
print("chunks", *shard["tokens"].chunks)
