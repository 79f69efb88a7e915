// Runs a function of a compiled library once, on arguments from a file.
//
//   runner JOB
//
// JOB is text, a word after the other: library PATH, function NAME, data PATH, result PATH, and for each argument
// tensor CODE BITS OFFSET NDIM SIZE..., where CODE is that of DLPack and OFFSET is where its bytes are in data.
// The result gets, for each tensor that comes back, a line "CODE BITS NDIM SIZE..." and its bytes.
// On standard output: where the library is in memory, and how many bytes of it.

#include <link.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

using namespace tvm::ffi;

namespace {

constexpr size_t kAlignment = 64;

struct Allocator {
  void AllocData(DLTensor* tensor) {
    size_t size = 1;
    for (int axis = 0; axis < tensor->ndim; ++axis) size *= tensor->shape[axis];
    size *= (tensor->dtype.bits * tensor->dtype.lanes + 7) / 8;
    tensor->data = std::aligned_alloc(kAlignment, (size / kAlignment + 1) * kAlignment);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

size_t BytesOf(const Tensor& tensor) { return tensor.numel() * ((tensor.dtype().bits + 7) / 8); }

struct Job {
  std::string library, function, data, result;
  std::vector<Tensor> arguments;
};

Job ReadJob(const char* path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  Job job;
  std::vector<std::pair<size_t, Tensor>> places;
  for (std::string word; file >> word;) {
    if (word == "library") {
      file >> job.library;
    } else if (word == "function") {
      file >> job.function;
    } else if (word == "data") {
      file >> job.data;
    } else if (word == "result") {
      file >> job.result;
    } else if (word == "tensor") {
      int code = 0, bits = 0, ndim = 0;
      size_t offset = 0;
      file >> code >> bits >> offset >> ndim;
      std::vector<int64_t> shape(ndim);
      for (int64_t& size : shape) file >> size;
      DLDataType dtype{static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1};
      Tensor tensor = Tensor::FromNDAlloc(Allocator(), ShapeView(shape.data(), shape.size()), dtype,
                                          DLDevice{kDLCPU, 0});
      places.emplace_back(offset, tensor);
    } else {
      throw std::runtime_error("no job has a '" + word + "'");
    }
  }
  std::ifstream data(job.data, std::ios::binary);
  for (auto& [offset, tensor] : places) {
    data.seekg(offset);
    data.read(static_cast<char*>(tensor.data_ptr()), BytesOf(tensor));
    if (!data) throw std::runtime_error("the data end too soon");
    job.arguments.push_back(tensor);
  }
  return job;
}

void Write(std::ofstream& file, const Any& value) {
  if (auto tensor = value.try_cast<Tensor>()) {
    DLDataType dtype = tensor->dtype();
    file << int(dtype.code) << ' ' << int(dtype.bits) << ' ' << tensor->ndim();
    for (int axis = 0; axis < tensor->ndim(); ++axis) file << ' ' << tensor->size(axis);
    file << '\n';
    file.write(static_cast<const char*>(tensor->data_ptr()), BytesOf(*tensor));
    return;
  }
  for (const Any& part : value.cast<Array<Any>>()) Write(file, part);
}

struct Library {
  const char* path;
  uintptr_t base, size;
};

int Find(dl_phdr_info* info, size_t, void* wanted) {
  auto* library = static_cast<Library*>(wanted);
  if (std::strcmp(info->dlpi_name, library->path) != 0) return 0;
  library->base = info->dlpi_addr;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type == PT_LOAD) library->size = segment.p_vaddr + segment.p_memsz;
  }
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "runner JOB\n");
    return 2;
  }
  try {
    Job job = ReadJob(argv[1]);
    Module library = Module::LoadFromFile(job.library);
    Library found{job.library.c_str(), 0, 0};
    dl_iterate_phdr(Find, &found);
    std::printf("%llu %llu\n", static_cast<unsigned long long>(found.base),
                static_cast<unsigned long long>(found.size));
    std::fflush(stdout);
    Module machine = library->GetFunction("vm_load_executable").value()().cast<Module>();
    constexpr int kPooled = 2;
    machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, kPooled);
    Function function = machine->GetFunction(job.function).value();
    std::vector<AnyView> arguments(job.arguments.begin(), job.arguments.end());
    Any result;
    function.CallPacked(arguments.data(), static_cast<int>(arguments.size()), &result);
    std::ofstream file(job.result, std::ios::binary);
    Write(file, result);
    file.close();
    return file ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
