"""Device TIR -> SPIR-V 1.3 for Vulkan 1.1.

`build.build_kernels` is the way in. From the bottom up:

| module | what it knows |
|---|---|
| dtypes | dtypes, how they are held in registers and in memory, the features of a device that they need |
| module | ids, types, constants, blocks and the words of a SPIR-V module |
| arithmetic | typed values and their operations, with the meaning that the CPU target has |
| conversion | casts |
| functions, logarithm, trigonometry, bits | mathematical functions with stated error bounds |
| doubles, c_source, c_functions | those of float64: exp and log, and what the CPU target has in C |
| half, words | elements of 8 and 16 bits for devices without such types |
| bounds, turns | how often loops turn |
| memory | bindings, arrays of a workgroup and of an invocation, push constants |
| kernel | what is known about a finished kernel, the entry point |
| expressions, statements | one method per TIR node |
| build | TVM's lowering passes for a GPU, host and device side |
| reflect | reading a module back, for tests and for error messages |

Only expressions, statements and build import TVM. docs/adr has the decisions.
"""
