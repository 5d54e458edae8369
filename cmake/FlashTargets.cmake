# flash_library(NAME SOURCES a.cpp ... [DEPS target ...] [PUBLIC_DEPS ...])
# One static library for each folder of src/, named flash_<folder>.
function(flash_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(flash_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(flash_${name} PUBLIC flash_options ${ARG_DEPS})
endfunction()

# flash_test(NAME SOURCES a_test.cpp ... [DEPS target ...] [LABELS unit])
# One test binary; ctest runs it once (a case each would cost a process each).
# Labels: unit (the default; fast, no model), model, disk, slow; the name of
# the folder is added. Tests find files of testdata/ through FLASH_TESTDATA.
function(flash_test name)
  if(NOT FLASH_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE flash_options ${ARG_DEPS}
    GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE
    FLASH_TESTDATA="${CMAKE_SOURCE_DIR}/testdata")
  file(RELATIVE_PATH folder "${CMAKE_SOURCE_DIR}/src"
    "${CMAKE_CURRENT_SOURCE_DIR}")
  string(REGEX REPLACE "/.*" "" folder "${folder}")
  if(NOT folder MATCHES "^\\.\\.")
    list(APPEND ARG_LABELS ${folder})
  endif()
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}"
    TIMEOUT ${ARG_TIMEOUT})
endfunction()

# flash_bench(NAME SOURCES a_bench.cpp ... [DEPS target ...])
function(flash_bench name)
  if(NOT FLASH_BENCH)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE flash_options ${ARG_DEPS}
    benchmark::benchmark)
endfunction()
