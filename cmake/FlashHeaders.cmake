# flash_headers: compiles each header of ours alone, so that each brings what
# it needs. Part of `make lint`, not of the build.
file(GLOB_RECURSE FLASH_HEADERS CONFIGURE_DEPENDS
  RELATIVE "${CMAKE_SOURCE_DIR}"
  "${CMAKE_SOURCE_DIR}/src/*.h" "${CMAKE_SOURCE_DIR}/include/mlx_flash/*.h")
# Bodies that Highway includes once for each instruction set.
list(FILTER FLASH_HEADERS EXCLUDE REGEX "-inl\\.h$")

set(units)
foreach(header IN LISTS FLASH_HEADERS)
  string(MAKE_C_IDENTIFIER "${header}" unit)
  string(REGEX REPLACE "^(src|include)/" "" path "${header}")
  set(unit "${CMAKE_BINARY_DIR}/headers/${unit}.cpp")
  file(CONFIGURE OUTPUT "${unit}" CONTENT "#include \"${path}\"\n")
  list(APPEND units "${unit}")
endforeach()
add_library(flash_headers OBJECT EXCLUDE_FROM_ALL ${units})
target_compile_options(flash_headers PRIVATE -O0)
target_link_libraries(flash_headers PRIVATE flash_options mlx fmt::fmt
  nlohmann_json::nlohmann_json CLI11::CLI11 PkgConfig::HWY PkgConfig::PCRE2
  PkgConfig::UTF8PROC $<TARGET_NAME_IF_EXISTS:PkgConfig::URING>
  $<TARGET_NAME_IF_EXISTS:GTest::gmock>)
