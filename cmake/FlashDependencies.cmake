find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  pkg_check_modules(URING REQUIRED IMPORTED_TARGET liburing)
endif()

# MLX: exactly the version the numerics were verified against (MLX's SONAME
# carries no version, so the loader would accept any).
set(FLASH_MLX_VERSION 0.32.4)
find_package(MLX CONFIG REQUIRED PATHS "${MLX_ROOT}" NO_DEFAULT_PATH)
if(NOT MLX_VERSION VERSION_EQUAL FLASH_MLX_VERSION)
  message(FATAL_ERROR "MLX ${FLASH_MLX_VERSION} is needed, found "
                      "${MLX_VERSION} in ${MLX_ROOT}")
endif()

if(FLASH_TESTS)
  find_package(GTest REQUIRED)
  include(GoogleTest)
endif()
if(FLASH_BENCH)
  find_package(benchmark REQUIRED)
endif()
