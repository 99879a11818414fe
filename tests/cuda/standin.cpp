// A stand-in for NVIDIA's driver: libcuda.so.1 with the functions that packages use, over the CPU.
//
// Kernels are the package's CUDA text, run by the emulator. Everything that a stream does happens as late as it may:
// when somebody waits for it. What it does: README.md beside it.
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "tensor_maps.h"

#define API extern "C" __attribute__((visibility("default"))) int

typedef uint64_t Address;
enum {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
  INVALID_CONTEXT = 201, NO_BINARY = 209, FILE_NOT_FOUND = 301, INVALID_HANDLE = 400, NOT_FOUND = 500,
  NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719, INVALID_CLUSTER = 912
};

namespace {

std::recursive_mutex lock;
#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock)

const char *setting(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value && *value ? value : otherwise;
}

// ---- what is wrong with the caller, beyond what it is told by results

std::vector<std::string> faults;

void fault(const std::string &text) {
  faults.push_back(text);
  if (const char *path = getenv("STANDIN_LOG"))
    if (FILE *file = fopen(path, "a")) {
      fprintf(file, "%s\n", text.c_str());
      fclose(file);
    }
}

// ---- devices and contexts

struct Context {
  int device;
  int retained = 0;
  int sticky = SUCCESS;
};

std::vector<Context> contexts;
pid_t started = 0;  // the process that has called cuInit, and may call the rest
bool ours() {
  if (started && started != getpid()) fault("a forked process uses the driver of its parent");
  return started && started == getpid();
}
thread_local std::vector<Context *> current;

Context *context() { return current.empty() ? nullptr : current.back(); }

// What every call checks that needs a device.
#define CURRENT                                   \
  LOCKED;                                         \
  if (!ours()) return NOT_INITIALIZED;            \
  if (!context()) return INVALID_CONTEXT;         \
  if (!context()->retained) fault("a context is used that was released"); \
  if (context()->sticky) return context()->sticky

// ---- memory: pages of its own for each allocation, none after its end

constexpr size_t PAGE = 4096, ALIGNMENT = 256;
constexpr int POISON = 0xFF, SLACK = 0xA5;

struct Block {
  Address start;
  size_t size, mapped;
  char *pages;
  bool pinned;
  int device;
};

std::map<Address, Block> blocks;
size_t used = 0;

size_t total() { return strtoull(setting("STANDIN_MEMORY", "4294967296"), nullptr, 10); }
size_t rounded(size_t size, size_t to) { return (size + to - 1) / to * to; }

int allocate(size_t size, bool pinned, Address *result) {
  if (!size) return INVALID_VALUE;
  if (!pinned && used + size > total()) return OUT_OF_MEMORY;
  if (pinned && size > strtoull(setting("STANDIN_PINNED", "4294967296"), nullptr, 10)) return OUT_OF_MEMORY;
  size_t inside = rounded(size, ALIGNMENT), mapped = rounded(inside, PAGE) + PAGE;
  char *pages = static_cast<char *>(mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (pages == MAP_FAILED) return OUT_OF_MEMORY;
  mprotect(pages + mapped - PAGE, PAGE, PROT_NONE);
  madvise(pages, mapped, MADV_DONTFORK);  // a forked process has none of it
  char *start = pages + mapped - PAGE - inside;
  memset(start, POISON, size);
  memset(start + size, SLACK, inside - size);
  *result = reinterpret_cast<Address>(start);
  blocks[*result] = {*result, size, mapped, pages, pinned, context()->device};
  if (!pinned) used += size;
  return SUCCESS;
}

int release(Address address, bool pinned) {
  auto found = blocks.find(address);
  if (found == blocks.end() || found->second.pinned != pinned) {
    fault("memory is freed that was not allocated, or was freed before");
    return INVALID_VALUE;
  }
  Block block = found->second;
  for (size_t i = block.size; i < rounded(block.size, ALIGNMENT); i++)
    if (reinterpret_cast<unsigned char *>(block.start)[i] != SLACK) {
      fault("something was written past the end of " + std::to_string(block.size) + " bytes");
      break;
    }
  if (!pinned) used -= block.size;
  blocks.erase(found);
  // The addresses are never given again, so that a use of them is seen.
  mmap(block.pages, block.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  return SUCCESS;
}

const Block *block_of(Address address, size_t size) {
  auto next = blocks.upper_bound(address);
  if (next == blocks.begin()) return nullptr;
  const Block &block = std::prev(next)->second;
  return address + size <= block.start + block.size ? &block : nullptr;
}

bool on_device(Address address, size_t size) {
  const Block *block = block_of(address, size);
  return block && !block->pinned;
}

// ---- streams: queues of work that is done when somebody waits for it

struct Stream;

struct Mark {  // a point of a stream's work
  Stream *stream = nullptr;
  long position = 0;
};

struct Work {
  std::function<int()> action;
  std::vector<Mark> after;
};

struct Stream {
  bool blocking;
  bool captured = false;
  Context *owner;
  std::vector<Work> queue;
  long done = 0;  // of all work that it ever had
  long end() const { return done + static_cast<long>(queue.size()); }
};

std::set<Stream *> streams;
std::map<Context *, Stream *> legacy_of;

Stream *legacy() {
  Stream *&found = legacy_of[context()];
  if (!found) {
    found = new Stream{true, false, context(), {}};
    streams.insert(found);
  }
  return found;
}

Stream *stream_of(void *handle) {
  auto number = reinterpret_cast<uintptr_t>(handle);
  if (number <= 2) return legacy();
  auto *stream = static_cast<Stream *>(handle);
  if (!streams.count(stream)) {
    fault("a stream is used that was destroyed, or is none");
    return nullptr;
  }
  if (stream->owner != context()) fault("a stream of another device is used");
  return stream;
}

int run_until(Stream *stream, long position) {
  while (stream->done < position) {
    Work work = std::move(stream->queue.front());
    stream->queue.erase(stream->queue.begin());
    stream->done++;
    for (const Mark &mark : work.after)
      if (streams.count(mark.stream))
        if (int code = run_until(mark.stream, mark.position)) return code;
    if (stream->owner->sticky) return stream->owner->sticky;
    if (int code = work.action ? work.action() : SUCCESS) return stream->owner->sticky = code;
  }
  return stream->owner->sticky;
}

int run_all(Context *of) {
  for (Stream *stream : std::vector<Stream *>(streams.begin(), streams.end()))
    if (stream->owner == of)
      if (int code = run_until(stream, stream->end())) return code;
  return SUCCESS;
}

void add(Stream *stream, std::function<int()> action, std::vector<Mark> after = {}) {
  if (stream->captured) fault("a stream gets work while it is captured");
  // The legacy stream and those that were not made "non-blocking" wait for each other.
  if (stream == legacy()) {
    for (Stream *other : streams)
      if (other != stream && other->blocking && other->owner == stream->owner) after.push_back({other, other->end()});
  } else if (stream->blocking) {
    after.push_back({legacy(), legacy()->end()});
  }
  stream->queue.push_back({std::move(action), std::move(after)});
}

struct Event {
  Mark mark;
  bool timing;
  double seconds = 0;
};

std::set<Event *> events;
double now = 0;  // the device's clock: every piece of work takes a microsecond

// What STANDIN_TIMES says of a kernel, "word=seconds,...": one whose name contains a word is not run and takes that time;
// 0: it fails on the device. Below 0: nothing is said.
double made_up(const std::string &kernel) {
  std::string list = setting("STANDIN_TIMES", "");
  for (size_t start = 0, end; start < list.size(); start = end + 1) {
    end = std::min(list.find(',', start), list.size());
    size_t equals = list.find('=', start);
    if (equals < end && kernel.find(list.substr(start, equals - start)) != std::string::npos)
      return atof(list.c_str() + equals + 1);
  }
  return -1;
}

// ---- code

struct Kernel {
  std::string name;
  const char *(*launch)(const int *grid, const int *block, int shared, int cluster, void **arguments);
  const int *sizes;  // of the arguments: their number, then bytes each; below 0: a pointer
  int most_shared = 0;
};

struct Library {
  void *handle;
  std::map<std::string, std::unique_ptr<Kernel>> kernels;
};

std::set<Library *> libraries;
std::set<Kernel *> kernels;

sigjmp_buf escape;
void on_segv(int) { siglongjmp(escape, 1); }

struct Launch {
  Kernel *kernel;
  int grid[3], block[3], shared, cluster = 1;
  std::vector<std::vector<char>> arguments;

  int timed() const {
    double seconds = made_up(kernel->name);
    now += seconds < 0 ? 1e-6 : seconds;
    return seconds < 0 ? run() : seconds > 0 ? +SUCCESS : +LAUNCH_FAILED;
  }

  int run() const {
    if (!kernels.count(kernel)) {
      fault("a kernel runs whose code was unloaded");
      return LAUNCH_FAILED;
    }
    std::vector<void *> places;
    for (size_t i = 0; i < arguments.size(); i++) {
      if (kernel->sizes[1 + i] < 0) {
        Address address;
        tensor_maps::Tensor tensor;
        memcpy(&address, arguments[i].data(), sizeof address);
        if (kernel->sizes[1 + i] != -8) {
          memcpy(&tensor, arguments[i].data(), sizeof tensor);
          address = tensor.magic == tensor_maps::MAGIC ? tensor.address : 0;
        }
        if (!on_device(address, 0)) {
          fault("kernel " + kernel->name + " gets a pointer that is none of the device's memory");
          return ILLEGAL_ADDRESS;
        }
      }
      places.push_back(const_cast<char *>(arguments[i].data()));
    }
    struct sigaction action {}, before_segv, before_bus;
    action.sa_handler = on_segv;
    action.sa_flags = SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
    int code = SUCCESS;
    if (sigsetjmp(escape, 1)) {
      fault("kernel " + kernel->name + " accesses memory that is not allocated");
      code = ILLEGAL_ADDRESS;
    } else if (const char *wrong = kernel->launch(grid, block, shared, cluster, places.data()); *wrong) {
      fault("kernel " + kernel->name + ": " + wrong);
      code = LAUNCH_FAILED;
    }
    sigaction(SIGSEGV, &before_segv, nullptr);
    sigaction(SIGBUS, &before_bus, nullptr);
    return code;
  }
};

const unsigned MAX_GRID[3] = {0x7FFFFFFF, 65535, 65535};
constexpr unsigned MAX_THREADS = 1024, USUAL_SHARED = 49152;
// Of a block, on the devices that the capability is of.
int most_shared() { return atoi(setting("STANDIN_CAPABILITY", "8.0")) >= 9 ? 232448 : 166912; }

int make_launch(void *function, const unsigned *grid, const unsigned *block, unsigned shared, void **arguments,
                Launch *result) {
  auto *kernel = static_cast<Kernel *>(function);
  if (!kernels.count(kernel)) {
    fault("a kernel is launched that is not loaded");
    return INVALID_HANDLE;
  }
  for (int i = 0; i < 3; i++)
    if (!grid[i] || grid[i] > MAX_GRID[i] || !block[i]) return INVALID_VALUE;
  if (block[0] * block[1] * block[2] > MAX_THREADS || block[2] > 64) return INVALID_VALUE;
  if (shared > USUAL_SHARED && static_cast<int>(shared) > kernel->most_shared) return INVALID_VALUE;
  result->kernel = kernel;
  result->shared = static_cast<int>(shared);
  for (int i = 0; i < 3; i++) result->grid[i] = static_cast<int>(grid[i]), result->block[i] = static_cast<int>(block[i]);
  for (int i = 0; i < kernel->sizes[0]; i++) {
    auto *bytes = static_cast<const char *>(arguments[i]);
    result->arguments.emplace_back(bytes, bytes + abs(kernel->sizes[1 + i]));
  }
  return SUCCESS;
}

// What a launch's attributes say: an ID, padding to 8 bytes, a value of 64 bytes. Only clusters are known, of devices that
// have them: blocks along the first axis, 8 at most everywhere.
constexpr int CLUSTER_DIMENSION = 4;
struct Attribute {
  int id;
  alignas(8) unsigned value[16];
};

int set_cluster(Launch *launch, int id, const unsigned *value) {
  if (id != CLUSTER_DIMENSION) {
    fault("an attribute of a launch that is not known here");
    return INVALID_VALUE;
  }
  bool can = atoi(setting("STANDIN_CAPABILITY", "8.0")) >= 9;
  if (!can || !value[0] || value[0] > 8 || value[1] != 1 || value[2] != 1 || launch->grid[0] % value[0])
    return INVALID_CLUSTER;
  launch->cluster = static_cast<int>(value[0]);
  return SUCCESS;
}

int copy_bytes(Address target, Address source, size_t size, bool from_host, bool to_host) {
  if (!size) return INVALID_VALUE;
  if (!from_host && !on_device(source, size)) {
    fault("a copy reads memory that is none of the device's");
    return ILLEGAL_ADDRESS;
  }
  if (!to_host && !on_device(target, size)) {
    fault("a copy writes memory that is none of the device's");
    return ILLEGAL_ADDRESS;
  }
  memmove(reinterpret_cast<void *>(target), reinterpret_cast<void *>(source), size);
  return SUCCESS;
}

// Copies with the host that nobody waits for have to be from or to pinned memory, which is still there when they run.
bool check_pinned(Address address, size_t size) {
  const Block *block = block_of(address, size);
  if (block && block->pinned) return true;
  fault("an asynchronous copy with memory of the host that is not pinned, or not any more");
  return false;
}

int copy_pinned(Address target, Address source, size_t size, bool from_host, bool to_host) {
  if ((from_host && !check_pinned(source, size)) || (to_host && !check_pinned(target, size))) return ILLEGAL_ADDRESS;
  return copy_bytes(target, source, size, from_host, to_host);
}

// ---- graphs

struct Node {
  std::function<int()> action;
  std::vector<Node *> before;
  std::shared_ptr<Launch> launch;  // of a kernel
};

struct Graph {
  std::vector<std::unique_ptr<Node>> nodes;
};

struct Executable {
  std::vector<std::function<int()>> order;
  Context *owner;
  Mark last;
};

std::set<Graph *> graphs;
std::set<Executable *> executables;

int add_node(Graph *graph, Node *const *before, size_t count, std::function<int()> action, Node **result,
             std::shared_ptr<Launch> launch = nullptr) {
  if (!graphs.count(graph)) return INVALID_HANDLE;
  std::vector<Node *> needed(before, before + count);
  graph->nodes.push_back(std::make_unique<Node>(Node{std::move(action), std::move(needed), launch}));
  *result = graph->nodes.back().get();
  return SUCCESS;
}

}  // namespace

// ---- devices

static void at_exit();

API cuInit(unsigned) {
  LOCKED;
  if (started && started != getpid()) return NOT_INITIALIZED;
  int count = atoi(setting("STANDIN_DEVICES", "2"));
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  if (visible && (!*visible || *visible == '-')) count = 0;
  if (!count) return NO_DEVICE;
  if (!started) contexts.resize(count), atexit(at_exit);
  for (int i = 0; i < count; i++) contexts[i].device = i;
  started = getpid();
  return SUCCESS;
}
API cuDriverGetVersion(int *version) {
  *version = atoi(setting("STANDIN_VERSION", "13000"));
  return SUCCESS;
}
API cuDeviceGetCount(int *count) {
  LOCKED;
  *count = static_cast<int>(contexts.size());
  return ours() ? SUCCESS : NOT_INITIALIZED;
}
API cuDeviceGet(int *device, int number) {
  LOCKED;
  *device = number;
  return number >= 0 && number < static_cast<int>(contexts.size()) ? SUCCESS : INVALID_DEVICE;
}
API cuDeviceGetName(char *name, int size, int device) {
  snprintf(name, size, "stand-in %d", device);
  return SUCCESS;
}
API cuDeviceGetAttribute(int *value, int attribute, int) {
  int major = 0, minor = 0;
  sscanf(setting("STANDIN_CAPABILITY", "8.0"), "%d.%d", &major, &minor);
  switch (attribute) {
    case 1: *value = MAX_THREADS; break;
    case 5: case 6: case 7: *value = static_cast<int>(MAX_GRID[attribute - 5]); break;
    case 75: *value = major; break;
    case 76: *value = minor; break;
    case 97: *value = most_shared(); break;
    case 115: *value = atoi(setting("STANDIN_POOLS", "1")); break;
    default: return INVALID_VALUE;
  }
  return SUCCESS;
}
API cuGetErrorString(int code, const char **text) {
  static std::map<int, const char *> texts = {
      {INVALID_VALUE, "invalid argument"}, {OUT_OF_MEMORY, "out of memory"}, {INVALID_CONTEXT, "invalid context"},
      {ILLEGAL_ADDRESS, "an illegal memory access was encountered"}, {LAUNCH_FAILED, "unspecified launch failure"}};
  *text = texts.count(code) ? texts[code] : "an error";
  return SUCCESS;
}
API cuDevicePrimaryCtxRetain(Context **result, int device) {
  LOCKED;
  if (!ours()) return NOT_INITIALIZED;
  *result = &contexts[device];
  contexts[device].retained++;
  return SUCCESS;
}
API cuDevicePrimaryCtxRelease(int device) {
  LOCKED;
  if (contexts[device].retained <= 0) {
    fault("a context is released more often than it was retained");
    return INVALID_CONTEXT;
  }
  contexts[device].retained--;
  return SUCCESS;
}
API cuCtxPushCurrent(Context *wanted) {
  LOCKED;
  if (!wanted || !wanted->retained) return INVALID_CONTEXT;
  current.push_back(wanted);
  return SUCCESS;
}
API cuCtxPopCurrent(Context **result) {
  if (current.empty()) return INVALID_CONTEXT;
  if (result) *result = current.back();
  current.pop_back();
  return SUCCESS;
}
API cuCtxGetCurrent(Context **result) {
  *result = context();
  return SUCCESS;
}
API cuCtxSynchronize() {
  CURRENT;
  return run_all(context());
}

// ---- memory

API cuMemGetInfo(size_t *free, size_t *all) {
  CURRENT;
  *free = total() - used, *all = total();
  return SUCCESS;
}
API cuMemAlloc(Address *result, size_t size) {
  CURRENT;
  return allocate(size, false, result);
}
API cuMemFree(Address address) {
  CURRENT;
  return release(address, false);
}
API cuMemHostAlloc(Address *result, size_t size, unsigned) {
  CURRENT;
  return allocate(size, true, result);
}
API cuMemFreeHost(Address address) {
  CURRENT;
  return release(address, true);
}
API cuMemcpyHtoD(Address target, Address source, size_t size) {
  CURRENT;
  // Ordered on the legacy stream, and not done when it returns.
  std::vector<char> read(reinterpret_cast<char *>(source), reinterpret_cast<char *>(source) + size);
  add(legacy(), [=] { return copy_bytes(target, reinterpret_cast<Address>(read.data()), size, true, false); });
  return SUCCESS;
}
API cuMemcpyDtoH(Address target, Address source, size_t size) {
  CURRENT;
  Stream *stream = legacy();
  add(stream, [=] { return copy_bytes(target, source, size, false, true); });
  return run_until(stream, stream->end());
}
API cuMemcpyHtoDAsync(Address target, Address source, size_t size, void *handle) {
  CURRENT;
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  if (!check_pinned(source, size)) return INVALID_VALUE;
  add(stream, [=] { return copy_pinned(target, source, size, true, false); });
  return SUCCESS;
}
API cuMemcpyDtoHAsync(Address target, Address source, size_t size, void *handle) {
  CURRENT;
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  if (!check_pinned(target, size)) return INVALID_VALUE;
  add(stream, [=] { return copy_pinned(target, source, size, false, true); });
  return SUCCESS;
}
API cuMemcpyDtoDAsync(Address target, Address source, size_t size, void *handle) {
  CURRENT;
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  add(stream, [=] { return copy_bytes(target, source, size, false, false); });
  return SUCCESS;
}

struct PoolProperties {
  int kind, handles, place, device;
  void *security;
  size_t most;
  unsigned short usage;
  unsigned char reserved[54];
};
static int pools = 0;
API cuMemPoolCreate(void **pool, const PoolProperties *given) {
  CURRENT;
  // Pinned, for no other process, on the device that is current.
  if (given->kind != 1 || given->handles || given->place != 1 || given->device != context()->device) return INVALID_VALUE;
  pools++;
  *pool = &pools;
  return SUCCESS;
}
API cuMemPoolSetAttribute(void *pool, int attribute, const uint64_t *value) {
  CURRENT;
  if (pool != &pools || attribute != 4 || !*value) return INVALID_VALUE;  // the release threshold
  return SUCCESS;
}
API cuMemPoolDestroy(void *pool) {
  LOCKED;
  if (pool != &pools) return INVALID_VALUE;
  pools--;
  return SUCCESS;
}
API cuMemAllocFromPoolAsync(Address *result, size_t size, void *pool, void *handle) {
  CURRENT;
  if (pool != &pools) return INVALID_VALUE;
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  int code = allocate(size, false, result);
  if (!code) add(stream, [address = *result, size] { return memset(reinterpret_cast<void *>(address), POISON, size), 0; });
  return code;
}
API cuMemFreeAsync(Address address, void *handle) {
  CURRENT;
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  add(stream, [=] { return release(address, false); });
  return SUCCESS;
}

// ---- streams and events

API cuStreamCreate(void **result, unsigned flags) {
  CURRENT;
  auto *stream = new Stream{!(flags & 1), false, context(), {}};
  streams.insert(stream);
  *result = stream;
  return SUCCESS;
}
API cuStreamDestroy(void *handle) {
  CURRENT;
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  if (!stream->queue.empty()) fault("a stream is destroyed that has work left");
  streams.erase(stream);
  return SUCCESS;
}
API cuStreamSynchronize(void *handle) {
  CURRENT;
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  if (stream == legacy()) add(stream, nullptr);
  return run_until(stream, stream->end());
}
API cuStreamIsCapturing(void *handle, int *status) {
  CURRENT;
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  *status = stream->captured;
  return SUCCESS;
}
API cuStreamBeginCapture(void *handle, int) {
  CURRENT;
  Stream *stream = stream_of(handle);
  if (!stream || stream == legacy()) return INVALID_VALUE;
  stream->captured = true;
  return SUCCESS;
}
API cuStreamEndCapture(void *handle, Graph **result) {
  CURRENT;
  Stream *stream = stream_of(handle);
  if (!stream || !stream->captured) return INVALID_VALUE;
  stream->captured = false;
  *result = new Graph;
  graphs.insert(*result);
  return SUCCESS;
}
API cuStreamWaitEvent(void *handle, Event *event, unsigned) {
  CURRENT;
  Stream *stream = stream_of(handle);
  if (!stream || !events.count(event)) return INVALID_HANDLE;
  if (event->mark.stream) add(stream, nullptr, {event->mark});
  return SUCCESS;
}
API cuEventCreate(Event **result, unsigned flags) {
  CURRENT;
  *result = new Event{{}, !(flags & 2)};
  events.insert(*result);
  return SUCCESS;
}
API cuEventDestroy(Event *event) {
  CURRENT;
  if (!events.erase(event)) return INVALID_HANDLE;
  return SUCCESS;
}
API cuEventRecord(Event *event, void *handle) {
  CURRENT;
  Stream *stream = stream_of(handle);
  if (!stream || !events.count(event)) return INVALID_HANDLE;
  add(stream, [event] {
    if (events.count(event)) event->seconds = now;
    return 0;
  });
  event->mark = {stream, stream->end()};
  return SUCCESS;
}
API cuEventSynchronize(Event *event) {
  CURRENT;
  if (!events.count(event)) return INVALID_HANDLE;
  return event->mark.stream && streams.count(event->mark.stream) ? run_until(event->mark.stream, event->mark.position)
                                                                 : SUCCESS;
}
API cuEventQuery(Event *event) {
  CURRENT;
  if (!events.count(event)) return INVALID_HANDLE;
  Stream *stream = event->mark.stream;
  return stream && streams.count(stream) && stream->done < event->mark.position ? NOT_READY : SUCCESS;
}
API cuEventElapsedTime(float *milliseconds, Event *start, Event *end) {
  CURRENT;
  if (!events.count(start) || !events.count(end) || !start->timing || !end->timing) return INVALID_HANDLE;
  *milliseconds = static_cast<float>((end->seconds - start->seconds) * 1e3);
  return SUCCESS;
}

// ---- code

// The kernels of a file as a library for this processor, which a command makes; "" if it does not.
static std::string library_for(const char *path) {
  uint64_t hash = 0xCBF29CE484222325;
  FILE *file = fopen(path, "rb");
  for (int byte; file && (byte = fgetc(file)) != EOF;) hash = (hash ^ byte) * 0x100000001B3;
  if (file) fclose(file);
  const char *capability = setting("STANDIN_CAPABILITY", "8.0"), *forced = setting("CUDA_FORCE_PTX_JIT", "0");
  char buffer[4096];
  snprintf(buffer, sizeof buffer, "%s/%016lx-%s-%s", setting("STANDIN_MADE", "/nowhere"), hash, capability, forced);
  std::string known = buffer, output;
  if (access(known.c_str(), R_OK)) {
    std::string command = std::string(setting("STANDIN_BUILD", "false")) + " '" + path + "' " + capability + " '" +
                          known + "'";
    if (system(command.c_str())) return "";
  }
  file = fopen(known.c_str(), "r");
  if (file && fgets(buffer, sizeof buffer, file)) output = buffer;
  if (file) fclose(file);
  return output;
}

API cuLibraryLoadFromFile(Library **result, const char *path, void *, void **, unsigned, void *, void **, unsigned) {
  LOCKED;
  if (!ours()) return NOT_INITIALIZED;
  if (access(path, R_OK)) return FILE_NOT_FOUND;
  std::string made = library_for(path);
  void *handle = made.empty() ? nullptr : dlopen(made.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) return NO_BINARY;
  *result = new Library{handle, {}};
  libraries.insert(*result);
  return SUCCESS;
}
API cuLibraryUnload(Library *library) {
  LOCKED;
  if (!libraries.erase(library)) {
    fault("a library is unloaded that is not loaded");
    return INVALID_HANDLE;
  }
  for (auto &[name, kernel] : library->kernels) kernels.erase(kernel.get()), kernel.release();
  delete library;
  return SUCCESS;
}
API cuLibraryGetKernel(Kernel **result, Library *library, const char *name) {
  LOCKED;
  if (!libraries.count(library)) return INVALID_HANDLE;
  auto launch = dlsym(library->handle, (std::string("standin_") + name).c_str());
  auto sizes = dlsym(library->handle, (std::string("sizes_") + name).c_str());
  if (!launch || !sizes) return NOT_FOUND;
  auto &kernel = library->kernels[name];
  if (!kernel) {
    kernel = std::make_unique<Kernel>();
    kernel->name = name;
    kernel->launch = reinterpret_cast<decltype(kernel->launch)>(launch);
    kernel->sizes = static_cast<const int *>(sizes);
    kernels.insert(kernel.get());
  }
  *result = kernel.get();
  return SUCCESS;
}
API cuKernelGetFunction(void **result, Kernel *kernel) {
  CURRENT;
  *result = kernel;
  return kernels.count(kernel) ? SUCCESS : INVALID_HANDLE;
}
API cuFuncGetAttribute(int *value, int attribute, Kernel *kernel) {
  CURRENT;
  if (!kernels.count(kernel)) return INVALID_HANDLE;
  *value = attribute == 0 ? MAX_THREADS : attribute == 8 ? kernel->most_shared : 0;
  return SUCCESS;
}
API cuFuncSetAttribute(Kernel *kernel, int attribute, int value) {
  CURRENT;
  if (!kernels.count(kernel)) return INVALID_HANDLE;
  if (attribute != 8 || value > most_shared()) return INVALID_VALUE;
  kernel->most_shared = value;
  return SUCCESS;
}
API cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *handle, void **arguments, void **) {
  CURRENT;
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  Launch launch;
  if (int code = make_launch(function, grid, block, shared, arguments, &launch)) return code;
  add(stream, [launch] { return launch.timed(); });
  return SUCCESS;
}

struct Configuration {
  unsigned grid[3], block[3], shared;
  void *stream;
  const Attribute *attributes;
  unsigned count;
};
API cuLaunchKernelEx(const Configuration *given, void *function, void **arguments, void **) {
  CURRENT;
  Stream *stream = stream_of(given->stream);
  if (!stream) return INVALID_HANDLE;
  Launch launch;
  if (int code = make_launch(function, given->grid, given->block, given->shared, arguments, &launch)) return code;
  for (unsigned i = 0; i < given->count; i++)
    if (int code = set_cluster(&launch, given->attributes[i].id, given->attributes[i].value)) return code;
  add(stream, [launch] { return launch.timed(); });
  return SUCCESS;
}

// ---- descriptors of tensors

static int described(const char *wrong) {
  if (!*wrong) return SUCCESS;
  fault(std::string("no descriptor of a tensor: ") + wrong);
  return INVALID_VALUE;
}
API cuTensorMapEncodeTiled(CUtensorMap *result, int kind, uint32_t rank, Address address, const uint64_t *sizes,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                           int swizzle, int, int fill) {
  LOCKED;
  return described(tensor_maps::encode(result, kind, rank, address, sizes, strides, box, nullptr, nullptr, steps,
                                       interleave, swizzle, fill));
}
API cuTensorMapEncodeIm2col(CUtensorMap *result, int kind, uint32_t rank, Address address, const uint64_t *sizes,
                            const uint64_t *strides, const int *lower, const int *upper, uint32_t channels,
                            uint32_t pixels, const uint32_t *steps, int interleave, int swizzle, int, int fill) {
  LOCKED;
  const uint32_t box[] = {channels, pixels};
  return described(tensor_maps::encode(result, kind, rank, address, sizes, strides, box, lower, upper, steps, interleave,
                                       swizzle, fill));
}

// ---- graphs

struct KernelParameters {
  void *function;
  unsigned grid[3], block[3], shared;
  void **arguments, **extra;
  void *kernel;
  Context *context;
};
struct CopySide {
  size_t x, y, z, level;
  int kind;
  Address host, device;
  void *array, *reserved;
  size_t pitch, height;
};
struct CopyParameters {
  CopySide source, target;
  size_t width, height, depth;
};
struct FillParameters {
  Address target;
  size_t pitch;
  unsigned value, element;
  size_t width, height;
};

API cuGraphCreate(Graph **result, unsigned) {
  CURRENT;
  *result = new Graph;
  graphs.insert(*result);
  return SUCCESS;
}
API cuGraphDestroy(Graph *graph) {
  LOCKED;
  if (!graphs.erase(graph)) return INVALID_HANDLE;
  delete graph;
  return SUCCESS;
}
API cuGraphAddKernelNode(Node **result, Graph *graph, Node *const *before, size_t count, const KernelParameters *given) {
  CURRENT;
  auto launch = std::make_shared<Launch>();
  if (int code = make_launch(given->function, given->grid, given->block, given->shared, given->arguments, launch.get()))
    return code;
  return add_node(graph, before, count, [launch] { return launch->timed(); }, result, launch);
}
API cuGraphKernelNodeSetAttribute(Node *node, int id, const unsigned *value) {
  CURRENT;
  return node->launch ? set_cluster(node->launch.get(), id, value) : +INVALID_VALUE;
}
API cuGraphAddMemcpyNode(Node **result, Graph *graph, Node *const *before, size_t count, const CopyParameters *given,
                         Context *) {
  CURRENT;
  if (!given->width || given->height != 1 || given->depth != 1) return INVALID_VALUE;
  bool from_host = given->source.kind == 1, to_host = given->target.kind == 1;
  Address source = from_host ? given->source.host : given->source.device;
  Address target = to_host ? given->target.host : given->target.device;
  size_t size = given->width;
  if (from_host && !check_pinned(source, size)) return INVALID_VALUE;
  if (to_host && !check_pinned(target, size)) return INVALID_VALUE;
  return add_node(graph, before, count, [=] { return copy_pinned(target, source, size, from_host, to_host); }, result);
}
API cuGraphAddMemsetNode(Node **result, Graph *graph, Node *const *before, size_t count, const FillParameters *given,
                         Context *) {
  CURRENT;
  if (given->element != 1 || given->height != 1) return INVALID_VALUE;
  Address target = given->target;
  size_t size = given->width;
  int value = static_cast<int>(given->value);
  return add_node(graph, before, count, [=] {
    if (!on_device(target, size)) return fault("zeros for memory that is none of the device's"), +ILLEGAL_ADDRESS;
    memset(reinterpret_cast<void *>(target), value, size);
    return +SUCCESS;
  }, result);
}
API cuGraphInstantiate(Executable **result, Graph *graph, unsigned long long) {
  CURRENT;
  if (!graphs.count(graph)) return INVALID_HANDLE;
  // Of the nodes that may run the one that was added last does: what lacks an edge is seen.
  auto *made = new Executable{{}, context(), {}};
  std::set<Node *> done;
  while (done.size() < graph->nodes.size()) {
    size_t before = done.size();
    for (size_t i = graph->nodes.size(); i-- && done.size() == before;) {
      Node *node = graph->nodes[i].get();
      bool ready = !done.count(node);
      for (Node *needed : node->before) ready = ready && done.count(needed);
      if (ready) made->order.push_back(node->action), done.insert(node);
    }
    if (done.size() == before) return INVALID_VALUE;
  }
  executables.insert(made);
  *result = made;
  return SUCCESS;
}
API cuGraphExecDestroy(Executable *graph) {
  CURRENT;
  if (!executables.erase(graph)) return INVALID_HANDLE;
  Stream *stream = graph->last.stream;
  if (stream && streams.count(stream) && stream->done < graph->last.position)
    fault("a graph is destroyed that was launched and has not run");
  return SUCCESS;
}
API cuGraphLaunch(Executable *graph, void *handle) {
  CURRENT;
  if (!executables.count(graph)) return INVALID_HANDLE;
  Stream *stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  if (graph->owner != context()) fault("a graph of another device is launched");
  // Launches of one graph come one after the other.
  std::vector<Mark> after;
  if (graph->last.stream) after.push_back(graph->last);
  add(stream, [graph] {
    for (auto &action : graph->order)
      if (int code = action()) return code;
    return +SUCCESS;
  }, after);
  graph->last = {stream, stream->end()};
  return SUCCESS;
}

// ---- how all of them are found

#define ENTRY(name) {#name, reinterpret_cast<void *>(name)}
static const std::map<std::string, void *> &entries() {
  static const std::map<std::string, void *> found = {
      ENTRY(cuInit), ENTRY(cuDriverGetVersion), ENTRY(cuDeviceGetCount), ENTRY(cuDeviceGet), ENTRY(cuDeviceGetName),
      ENTRY(cuDeviceGetAttribute), ENTRY(cuGetErrorString), ENTRY(cuDevicePrimaryCtxRetain),
      ENTRY(cuDevicePrimaryCtxRelease), ENTRY(cuCtxPushCurrent), ENTRY(cuCtxPopCurrent), ENTRY(cuCtxGetCurrent),
      ENTRY(cuCtxSynchronize), ENTRY(cuMemGetInfo), ENTRY(cuMemAlloc), ENTRY(cuMemFree), ENTRY(cuMemHostAlloc),
      ENTRY(cuMemFreeHost), ENTRY(cuMemcpyHtoD), ENTRY(cuMemcpyDtoH), ENTRY(cuMemcpyHtoDAsync),
      ENTRY(cuMemcpyDtoHAsync), ENTRY(cuMemcpyDtoDAsync), ENTRY(cuMemPoolCreate), ENTRY(cuMemPoolSetAttribute),
      ENTRY(cuMemPoolDestroy), ENTRY(cuMemAllocFromPoolAsync), ENTRY(cuMemFreeAsync), ENTRY(cuStreamCreate),
      ENTRY(cuStreamDestroy), ENTRY(cuStreamSynchronize), ENTRY(cuStreamWaitEvent), ENTRY(cuStreamIsCapturing),
      ENTRY(cuStreamBeginCapture), ENTRY(cuStreamEndCapture), ENTRY(cuEventCreate),
      ENTRY(cuEventDestroy), ENTRY(cuEventRecord), ENTRY(cuEventSynchronize), ENTRY(cuEventQuery),
      ENTRY(cuEventElapsedTime), ENTRY(cuLibraryLoadFromFile), ENTRY(cuLibraryUnload), ENTRY(cuLibraryGetKernel),
      ENTRY(cuKernelGetFunction), ENTRY(cuFuncGetAttribute), ENTRY(cuFuncSetAttribute), ENTRY(cuLaunchKernel),
      ENTRY(cuLaunchKernelEx), ENTRY(cuGraphKernelNodeSetAttribute),
      ENTRY(cuTensorMapEncodeTiled), ENTRY(cuTensorMapEncodeIm2col),
      ENTRY(cuGraphCreate), ENTRY(cuGraphDestroy), ENTRY(cuGraphAddKernelNode), ENTRY(cuGraphAddMemcpyNode),
      ENTRY(cuGraphAddMemsetNode), ENTRY(cuGraphInstantiate), ENTRY(cuGraphExecDestroy), ENTRY(cuGraphLaunch)};
  return found;
}

API cuGetProcAddress_v2(const char *name, void **function, int, uint64_t, int *status) {
  std::string wanted = name;
  if (wanted == "cuGraphInstantiateWithFlags") wanted = "cuGraphInstantiate";
  auto found = entries().find(wanted);
  *function = wanted == "cuGetProcAddress" ? reinterpret_cast<void *>(cuGetProcAddress_v2)
              : found == entries().end()   ? nullptr
                                           : found->second;
  if (status) *status = *function ? 0 : 1;
  return *function ? SUCCESS : NOT_FOUND;
}

// NVRTC asks for it where it finds a driver.
API cuGetExportTable(const void **table, const void *) {
  *table = nullptr;
  return NOT_FOUND;
}

// ---- for tests

static std::string report() {
  std::string text;
  for (auto &item : faults) text += item + "\n";
  return text;
}
static std::string left() {
  std::string text;
  auto count = [&](size_t number, const char *what) {
    if (number) text += std::to_string(number) + " " + what + " left\n";
  };
  int retained = 0;
  for (auto &item : contexts) retained += item.retained;
  size_t own = 0;
  for (Stream *stream : streams) own += !legacy_of.count(stream->owner) || legacy_of[stream->owner] != stream;
  count(blocks.size(), "allocations"), count(own, "streams"), count(events.size(), "events");
  count(libraries.size(), "libraries"), count(graphs.size() + executables.size(), "graphs");
  count(retained, "contexts"), count(pools, "pools");
  return text;
}
// What the caller did wrong since the last time it was asked, and what is still there.
extern "C" __attribute__((visibility("default"))) const char *standin_faults() {
  LOCKED;
  static std::string text;
  text = report();
  faults.clear();
  return text.c_str();
}
extern "C" __attribute__((visibility("default"))) const char *standin_left() {
  LOCKED;
  static std::string text;
  for (auto &item : contexts)
    if (!item.sticky) run_all(&item);
  text = left();
  return text.c_str();
}
// At the end of a process what is left is a fault.
static void at_exit() {
  bool failed = false;
  for (auto &item : contexts) failed = failed || item.sticky || (started == getpid() && run_all(&item));
  std::string text = left();
  if (started == getpid() && !text.empty() && !failed) fault("at the end of the process: " + text);
}
