# Read at the end of llama-cpp-python's project(). Its CMakeLists.txt forces llama.cpp's `common` on,
# which is most of the compiling and used by the tools alone; a plain variable hides that cache entry.
set(LLAMA_BUILD_COMMON OFF)
