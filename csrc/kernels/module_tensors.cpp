#include "module_tensors.hpp"

#include <vector>

#include "tensor_caster.hpp"

namespace aime {
namespace {

namespace py = pybind11;

// The layout that DLPack fixes.
struct Device {
  std::int32_t type;
  std::int32_t index;
};
struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct Exchanged {
  void* data;
  Device device;
  std::int32_t axes;
  DataType dtype;
  std::int64_t* sizes;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};
struct Table {
  std::uint32_t major;
  std::uint32_t minor;
  const Table* previous;
  void (*allocate)();
  void (*owned_from_object)();
  void (*to_object)();
  int (*from_object)(void* object, Exchanged* out);
  void (*stream)();
};
constexpr std::int32_t kCpu = 1;
constexpr std::uint8_t kFloatCode = 2;
constexpr std::uint8_t kBFloatCode = 4;

struct Reader {
  int (*from_object)(void* object, Exchanged* out) = nullptr;
  const PyTypeObject* tensor = nullptr;
  const PyTypeObject* parameter = nullptr;
};
Reader reader;

bool to_dtype(const DataType& type, Dtype* dtype) {
  if (type.lanes != 1) return false;
  if (type.code == kFloatCode && type.bits == 32) {
    *dtype = Dtype::kFloat32;
  } else if (type.code == kBFloatCode && type.bits == 16) {
    *dtype = Dtype::kBFloat16;
  } else if (type.code == kFloatCode && type.bits == 16) {
    *dtype = Dtype::kFloat16;
  } else {
    return false;
  }
  return true;
}

}  // namespace

bool read_tensors_by(const py::object& capsule, const py::type& tensor, const py::type& parameter) {
  const auto* table = static_cast<const Table*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (table == nullptr) throw py::error_already_set();
  if (table->major != 1 || table->from_object == nullptr) return false;
  reader = {table->from_object, reinterpret_cast<const PyTypeObject*>(tensor.ptr()),
            reinterpret_cast<const PyTypeObject*>(parameter.ptr())};
  return true;
}

bool read_tensor(PyObject* object, View* view) {
  if (reader.from_object == nullptr || (Py_TYPE(object) != reader.tensor && Py_TYPE(object) != reader.parameter)) {
    return false;
  }
  Exchanged found{};
  if (reader.from_object(object, &found) != 0) {
    PyErr_Clear();  // sparse, on no device that DLPack knows, or the like
    return false;
  }
  if (found.device.type != kCpu || found.axes > 3 || (found.axes > 0 && found.strides == nullptr)) return false;
  if (!to_dtype(found.dtype, &view->dtype)) return false;
  view->data = static_cast<const char*>(found.data) + found.byte_offset;
  view->axes = static_cast<std::size_t>(found.axes);
  for (std::size_t axis = 0; axis < view->axes; ++axis) {
    view->sizes[axis] = found.sizes[axis];
    view->strides[axis] = found.strides[axis];
  }
  return true;
}

View to_view(PyObject* object) {
  View view;
  if (object == Py_None || read_tensor(object, &view)) return view;
  py::detail::make_caster<Tensor> caster;
  if (!caster.load(object, false) || static_cast<Tensor&>(caster).sizes.size() > view.sizes.size()) {
    throw py::type_error("slot_attention: expected a tensor or its description, of up to three axes");
  }
  const Tensor& tensor = caster;
  view.data = tensor.data;
  view.dtype = tensor.dtype;
  view.axes = tensor.sizes.size();
  std::copy(tensor.sizes.begin(), tensor.sizes.end(), view.sizes.begin());
  std::copy(tensor.strides.begin(), tensor.strides.end(), view.strides.begin());
  return view;
}

}  // namespace aime
