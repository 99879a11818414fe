# find_package(transpiler): models as libraries of a CMake project.
#
#   find_package(transpiler REQUIRED)     # cmake -Dtranspiler_DIR=$(python -m transpiler cmake-dir)
#   transpile_model(NAME ratings SOURCE ratings.py)
#   target_link_libraries(program PRIVATE ratings)      # #include <ratings.h>
#
# The interpreter is Python3_EXECUTABLE, or the one that find_package(Python3) finds; it must have torch-transpiler.

cmake_minimum_required(VERSION 3.20...3.31)

find_package(Python3 3.11 REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND "${Python3_EXECUTABLE}" -m transpiler cmake-dir
  OUTPUT_VARIABLE _transpiler_found ERROR_VARIABLE _transpiler_error OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE _transpiler_result)
if(NOT _transpiler_result EQUAL 0)
  set(transpiler_FOUND FALSE)
  set(transpiler_NOT_FOUND_MESSAGE
    "${Python3_EXECUTABLE} has no torch-transpiler; name one that has: -DPython3_EXECUTABLE=...\n${_transpiler_error}")
  return()
endif()
get_filename_component(TRANSPILER_FOLDER "${_transpiler_found}" DIRECTORY)
set(TRANSPILER_PYTHON "${Python3_EXECUTABLE}")

# transpile_model(NAME <name> SOURCE <model.py|model.pt2|model.graph.json>
#                 [VERSION <version>] [ENTRY <name>] [INIT <key=value>...] [INPUTS <spec>...] [WEIGHTS <file>]
#                 [DYNAMIC <spec>...] [ISA <name>...] [TRIPLE <triple>] [GLIBC <version>] [TAPS <globs>]
#                 [TUNE none|fast|full] [TUNING_RECORD <file>] [PRECISION float32|tf32|float16|bfloat16] [DEPENDS <file>...]
#                 [EXACT] [RNG] [NO_TEST])
#
# Adds the library target <name>. It is transpiled when it is first built, and again when the source, the weights, a file
# that the source imports or opens, DEPENDS, or the transpiler has changed. The build fails if the generated tests do.
# The property TRANSPILE_PACKAGE of the target is the package's folder: library, kernels and weights, to be installed
# together.
function(transpile_model)
  cmake_parse_arguments(PARSE_ARGV 0 MODEL
    "EXACT;RNG;NO_TEST"
    "NAME;SOURCE;VERSION;ENTRY;WEIGHTS;TRIPLE;GLIBC;TAPS;TUNE;TUNING_RECORD;PRECISION"
    "INIT;INPUTS;DYNAMIC;ISA;DEPENDS")
  if(MODEL_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "transpile_model: unknown: ${MODEL_UNPARSED_ARGUMENTS}")
  endif()
  foreach(needed NAME SOURCE)
    if(NOT MODEL_${needed})
      message(FATAL_ERROR "transpile_model: ${needed} is missing")
    endif()
  endforeach()
  if(NOT MODEL_NAME MATCHES "^[A-Za-z][A-Za-z0-9_]*$")
    message(FATAL_ERROR "transpile_model: ${MODEL_NAME} cannot be the name of a package")
  endif()
  if(NOT MODEL_TUNE)
    set(MODEL_TUNE none)
  endif()

  set(files "")
  foreach(key SOURCE WEIGHTS TUNING_RECORD)
    if(MODEL_${key})
      get_filename_component(MODEL_${key} "${MODEL_${key}}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_SOURCE_DIR}")
      if(NOT EXISTS "${MODEL_${key}}")
        message(FATAL_ERROR "transpile_model: ${key}: there is no ${MODEL_${key}}")
      endif()
      list(APPEND files "${MODEL_${key}}")
    endif()
  endforeach()

  # Makefiles create the folders of what they make beforehand, and transpile writes into none but its own.
  set(out "${CMAKE_CURRENT_BINARY_DIR}/transpiled/projects")
  set(package "${CMAKE_CURRENT_BINARY_DIR}/transpiled/${MODEL_NAME}")
  set(library "${package}/lib/lib${MODEL_NAME}.so")
  set(arguments --name "${MODEL_NAME}" --out "${out}" --tune "${MODEL_TUNE}" --verbose)
  foreach(key ENTRY WEIGHTS TRIPLE GLIBC TAPS PRECISION)
    if(MODEL_${key})
      string(TOLOWER "${key}" flag)
      list(APPEND arguments "--${flag}" "${MODEL_${key}}")
    endif()
  endforeach()
  if(MODEL_VERSION)
    list(APPEND arguments --package-version "${MODEL_VERSION}")
  endif()
  if(MODEL_TUNING_RECORD)
    list(APPEND arguments --tuning-record "${MODEL_TUNING_RECORD}")
  endif()
  foreach(pair INIT:init INPUTS:input DYNAMIC:dynamic ISA:isa)
    string(REPLACE ":" ";" pair "${pair}")
    list(GET pair 0 key)
    list(GET pair 1 flag)
    foreach(value IN LISTS MODEL_${key})
      list(APPEND arguments "--${flag}" "${value}")
    endforeach()
  endforeach()
  foreach(pair EXACT:exact RNG:rng NO_TEST:no-test)
    string(REPLACE ":" ";" pair "${pair}")
    list(GET pair 0 key)
    list(GET pair 1 flag)
    if(MODEL_${key})
      list(APPEND arguments "--${flag}")
    endif()
  endforeach()

  file(MAKE_DIRECTORY "${out}" "${package}/include")
  add_custom_command(
    OUTPUT "${library}"
    BYPRODUCTS "${package}/include/${MODEL_NAME}.h" "${package}/weights.cpu.safetensors" "${package}/manifest.json"
    COMMAND "${TRANSPILER_PYTHON}" -B -m transpiler.watched
      "${out}/${MODEL_NAME}.json" "${CMAKE_CURRENT_SOURCE_DIR}" "${out}/${MODEL_NAME}.d" "${library}"
      -- ${arguments} -- "${MODEL_SOURCE}"
    COMMAND "${CMAKE_COMMAND}" -E rm -rf "${package}"
    COMMAND "${CMAKE_COMMAND}" -E copy_directory "${out}/${MODEL_NAME}/src/${MODEL_NAME}" "${package}"
    DEPENDS ${files} ${MODEL_DEPENDS} "${TRANSPILER_FOLDER}/__init__.py"
    DEPFILE "${out}/${MODEL_NAME}.d"
    WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}"
    COMMENT "Transpiling ${MODEL_NAME}"
    VERBATIM)
  add_custom_target("${MODEL_NAME}_transpiled" DEPENDS "${library}")

  add_library("${MODEL_NAME}" SHARED IMPORTED GLOBAL)
  set_target_properties("${MODEL_NAME}" PROPERTIES
    IMPORTED_LOCATION "${library}"
    IMPORTED_SONAME "lib${MODEL_NAME}.so"
    INTERFACE_INCLUDE_DIRECTORIES "${package}/include"
    TRANSPILE_PACKAGE "${package}")
  add_dependencies("${MODEL_NAME}" "${MODEL_NAME}_transpiled")
endfunction()
