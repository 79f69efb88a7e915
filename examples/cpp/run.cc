// Runs a model that `onnx-prune compile` made, with nothing but TVM's runtime.
//
//   run OUT.so FOLDER [INPUT.raw...]
//
// Inputs are raw numbers in the order of OUT.so.json; those that are not given are zeros. Result k goes to
// FOLDER/k.raw, and its shape and first numbers to standard output. A batch has the first size compiled for.

#include <fcntl.h>
#include <sys/mman.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <fstream>
#include <iostream>
#include <sstream>
#include <vector>

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;
const DLDevice kCpu = {kDLCPU, 0};

struct At {  // memory that somebody else has made, and keeps
  void* data;
  void AllocData(DLTensor* tensor) { tensor->data = data; }
  void FreeData(DLTensor*) {}
};

json::Value Get(const json::Value& object, const char* key) {
  return object.cast<json::Object>()[ffi::String(key)];
}

// The shape in a description; a symbol is the batch.
ffi::Shape ShapeOf(const json::Value& about, int64_t batch) {
  std::vector<int64_t> sizes;
  for (const json::Value& size : Get(about, "shape").cast<json::Array>()) {
    sizes.push_back(size.as<int64_t>().value_or(batch));
  }
  return ffi::Shape(sizes);
}

DLDataType TypeOf(const json::Value& about) {
  return ffi::StringToDLDataType(Get(about, "dtype").cast<ffi::String>());
}
size_t BytesOf(const ffi::Shape& shape, DLDataType type) { return shape.Product() * ((type.bits + 7) / 8); }

ffi::Tensor Input(const json::Value& about, int64_t batch, const char* path) {
  ffi::Shape shape = ShapeOf(about, batch);
  size_t size = BytesOf(shape, TypeOf(about));
  void* data = std::aligned_alloc(64, (size + 63) / 64 * 64);  // lives as long as the program
  std::fill_n(static_cast<char*>(data), size, 0);
  if (path && !std::ifstream(path, std::ios::binary).read(static_cast<char*>(data), size)) {
    throw std::runtime_error(std::string(path) + " does not hold " + std::to_string(size) + " bytes");
  }
  return ffi::Tensor::FromNDAlloc(At{data}, shape, TypeOf(about), kCpu);
}

// The bytes of all weights: they begin at a page of the library or of the file beside it.
char* Map(const std::string& library, const json::Value& weights) {
  std::string path = Get(weights, "beside").cast<bool>() ? library + ".weights" : library;
  size_t size = Get(weights, "bytes").cast<int64_t>();
  if (size == 0) return nullptr;
  int file = open(path.c_str(), O_RDONLY);
  void* bytes = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, Get(weights, "start").cast<int64_t>());
  if (bytes == MAP_FAILED) throw std::runtime_error("cannot map " + path);
  return static_cast<char*>(bytes);
}

void Write(const ffi::Tensor& tensor, const std::string& path) {
  std::cout << path << ": " << ffi::DLDataTypeToString(tensor.dtype()) << " [";
  for (int64_t size : tensor.shape()) std::cout << ' ' << size;
  std::cout << " ]";
  if (tensor.dtype().code == kDLFloat && tensor.dtype().bits == 32) {
    const float* data = static_cast<const float*>(tensor.data_ptr());
    for (int64_t i = 0; i < 4 && i < tensor.numel(); ++i) std::cout << ' ' << data[i];
  }
  std::cout << '\n';
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(tensor.data_ptr()), BytesOf(tensor.shape(), tensor.dtype()));
  if (!file) throw std::runtime_error("cannot write " + path);
}

int main(int argc, char** argv) try {
  if (argc < 3) throw std::runtime_error("usage: run OUT.so FOLDER [INPUT.raw...]");
  std::string library = argv[1];
  std::stringstream text;
  text << std::ifstream(library + ".json").rdbuf();
  json::Value about = json::Parse(text.str());
  json::Value batch = Get(about, "batch"), weights = Get(about, "weights"), target = Get(about, "target");
  int64_t rows = batch == nullptr ? 1 : Get(batch, "sizes").cast<json::Array>()[0].cast<int64_t>();

  ffi::Module machine =
      (*ffi::Module::LoadFromFile(library)->GetFunction("vm_load_executable"))().cast<ffi::Module>();
  (*machine->GetFunction("vm_initialization"))(static_cast<int>(kDLCPU), 0, 2);  // memory from a pool
  ffi::Function::GetGlobalRequired("runtime.config_threadpool")(1, Get(target, "num-cores"));

  std::vector<ffi::Any> values;  // inputs, then the weights that the function takes
  for (const json::Value& input : Get(about, "inputs").cast<json::Array>()) {
    size_t k = values.size() + 3;
    values.push_back(Input(input, rows, k < static_cast<size_t>(argc) ? argv[k] : nullptr));
  }
  char* bytes = Map(library, weights);
  for (const json::Value& index : Get(Get(about, "functions"), "main").cast<json::Array>()) {
    json::Value place = Get(weights, "tensors").cast<json::Array>()[index.cast<int64_t>()];
    At at{bytes + Get(place, "offset").cast<int64_t>()};
    values.push_back(ffi::Tensor::FromNDAlloc(at, ShapeOf(place, 1), TypeOf(place), kCpu));
  }
  ffi::Any result;
  std::vector<ffi::AnyView> arguments(values.begin(), values.end());
  (*machine->GetFunction("main")).CallPacked(arguments.data(), arguments.size(), &result);
  auto several = result.as<ffi::Array<ffi::Any>>();
  ffi::Array<ffi::Any> results = several ? *several : ffi::Array<ffi::Any>{result};
  for (size_t k = 0; k < results.size(); ++k) {
    Write(results[k].cast<ffi::Tensor>(), std::string(argv[2]) + "/" + std::to_string(k) + ".raw");
  }
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
