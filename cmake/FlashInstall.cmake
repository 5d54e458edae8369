# `cmake --install`: the program, one static library, the public headers, and a
# package file for find_package(mlx_flash).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

if(NOT TARGET flash_engine)
  return()
endif()

# All layers below the command line in one archive.
set(objects)
foreach(layer base io kernels text checkpoint hub residency kv nn models engine)
  if(TARGET flash_${layer})
    list(APPEND objects $<TARGET_OBJECTS:flash_${layer}>)
  endif()
endforeach()
add_library(mlx_flash STATIC EXCLUDE_FROM_ALL ${objects})
set_target_properties(mlx_flash PROPERTIES LINKER_LANGUAGE CXX)

get_filename_component(mlx_folder "${MLX_ROOT}" ABSOLUTE)
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/mlx_flash")
configure_package_config_file(
  "${CMAKE_SOURCE_DIR}/cmake/mlx_flashConfig.cmake.in"
  "${CMAKE_BINARY_DIR}/mlx_flashConfig.cmake"
  INSTALL_DESTINATION "${package_dir}"
  PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(
  "${CMAKE_BINARY_DIR}/mlx_flashConfigVersion.cmake"
  VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)

# The library is built on demand: the program does not need it.
install(CODE "execute_process(COMMAND \"${CMAKE_COMMAND}\" --build
  \"${CMAKE_BINARY_DIR}\" --target mlx_flash COMMAND_ERROR_IS_FATAL ANY)")
install(FILES "$<TARGET_FILE:mlx_flash>" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY "${CMAKE_SOURCE_DIR}/include/mlx_flash"
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")
install(FILES "${CMAKE_BINARY_DIR}/mlx_flashConfig.cmake"
              "${CMAKE_BINARY_DIR}/mlx_flashConfigVersion.cmake"
  DESTINATION "${package_dir}")
if(TARGET mlx-flash)
  # MLX stays where it was found.
  set_target_properties(mlx-flash PROPERTIES INSTALL_RPATH "${mlx_folder}/lib")
  install(TARGETS mlx-flash RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()
