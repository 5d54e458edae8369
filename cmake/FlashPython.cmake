# For the Python package: the interpreter it is built for, nanobind, and, unless
# MLX_ROOT says otherwise, the MLX that interpreter imports.
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(
  COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
  OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE nanobind_ROOT
  COMMAND_ERROR_IS_FATAL ANY)
find_package(nanobind CONFIG REQUIRED)
if(SKBUILD)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "import importlib.util as u, os
print(next(p for p in u.find_spec('mlx').submodule_search_locations
           if os.path.isdir(p + '/share/cmake/MLX')))"
    OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE python_mlx
    COMMAND_ERROR_IS_FATAL ANY)
  set(MLX_ROOT "${python_mlx}" CACHE PATH "" FORCE)
endif()
