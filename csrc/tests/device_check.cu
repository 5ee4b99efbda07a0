// csrc/math evaluated in kernels and on the host: equal bits for integers and for sums and products; what
// goes through exp or log, whose libraries differ, to a few units in the last place.
#include <vector>

#include "check.h"
#include "math/augment.h"
#include "math/divide.h"
#include "math/fusion.h"
#include "math/sgd_ema.h"
#include "math/shuffle.h"
#include "math/ssl_loss.h"
#include "math/view_draw.h"

using namespace interlude;

constexpr int kCount = 4096, kSkipped = 77;

#define CUDA_OK(call) CHECK_EQ(int(call), int(cudaSuccess))

struct Draw {
  IF_HD uint32_t operator()(int i) const {
    const Philox4 words = draw(uint64_t(-3), (uint64_t{1} << 33) + i, i, Stream::kAugment, i % 3, i % 7);
    return words.x ^ words.y ^ words.z ^ words.w;
  }
};

struct Permute {
  IF_HD uint32_t operator()(int i) const { return permute(make_permutation(kCount + 1, 9, i, 2, Stream::kSplit), i); }
};

struct Items {
  IF_HD uint32_t operator()(int i) const {
    return labeled_item(uint64_t(-1), (uint64_t{1} << 40) + i, 1437) ^ unlabeled_item(1, i, i, i % 7, 96000);
  }
};

struct Divide {
  IF_HD int operator()(int i) const { return make_divisor(1 + i).quotient(2147483647 - i * i); }
};

struct Fuse {
  IF_HD float operator()(int i) const {
    return fuse_element(1.0f / float(1 + i), float(shifted_row(i, kCount, 1)), 0.1f);
  }
};

struct View {
  IF_HD uint32_t operator()(int i) const {
    const AugmentPolicy p{33, 1, 4, 3, i % 2, 1024, 33 << 15, i % 3, {125, 123, 114}};
    const ViewDraw d = draw_view(p, 5, uint64_t(i) << 21, i, 1);
    uint32_t mixed = uint32_t(d.x0 + 64 * d.y0 + 4096 * d.x1 + (d.y1 << 18));
    for (int k = 0; k < p.ops; ++k) mixed = mixed * 31 + uint32_t(d.op[k] + 16 * d.mirrored[k] + 32 * d.level[k]);
    return mixed * 31 + uint32_t(d.flip + 2 * d.top + 32 * d.left);
  }
};

struct Pixel {
  IF_HD uint32_t operator()(int i) const {
    const uint32_t low = i % 50, high = 200 + i % 56, value = i % 256;
    const float factor = 0.05f + 0.9f * float(i) / kCount;
    return blend(int(low), int(value), factor) + 256u * autocontrast_entry(int(value), int(low), int(high)) +
           65536u * equalize_entry(int(value), i, 1 + i % 9);
  }
};

struct Gradient {
  IF_HD float operator()(int i) const {
    const RowGrad<float> g{0.3f, i % 5, -0.7f};
    return grad_element(g, i % 3, 1.0f / float(2 + i), 0.01f * float(i % 11), 0.4f);
  }
};

struct Softmax {
  IF_HD double operator()(int i) const {
    return softmax_element(0.01 * (i % 800), 8.0, 3.0) + cross_entropy(0.01 * i, 41.0, 1.0 + i);
  }
};

struct Descend {
  IF_HD double operator()(int i) const {
    const SgdEma<double> s{0.03, 1.0 + i % 3, 5e-4 * (i % 2), 0.9, 0.999, 1 - 0.999, 1 - 1e-4, i % 5 < 3};
    double weight = 0.01 * (i % 700), velocity = 1.0 / (1 + i), shadow = 0.3 * (i % 11);
    descend(s, momentum_direction(s, decayed_gradient(s, 0.7 * (i % 13), weight), velocity), weight, shadow);
    return weight + 16 * velocity + 256 * shadow;
  }
};

template <typename F, typename V>
__global__ void evaluate(F f, V* out) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < kCount) out[i] = f(i);
}

template <typename F>
void same_on_the_device(F f, double tolerance = 0) {
  using V = decltype(f(0));
  std::vector<V> host(kCount);
  V* device = nullptr;
  CUDA_OK(cudaMalloc(reinterpret_cast<void**>(&device), kCount * sizeof(V)));
  evaluate<<<(kCount + 127) / 128, 128>>>(f, device);
  CUDA_OK(cudaGetLastError());
  CUDA_OK(cudaMemcpy(host.data(), device, kCount * sizeof(V), cudaMemcpyDeviceToHost));
  CUDA_OK(cudaFree(device));
  for (int i = 0; i < kCount; ++i) {
    const V expected = f(i);
    if (tolerance == 0)
      CHECK_EQ(host[i], expected);
    else
      CHECK_NEAR(double(host[i]), double(expected), tolerance * (1 + std::abs(double(expected))));
  }
}

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::cout << "skipped: no GPU\n";
    return kSkipped;
  }
  same_on_the_device(Draw{});
  same_on_the_device(Permute{});
  same_on_the_device(Items{});
  same_on_the_device(Divide{});
  same_on_the_device(Fuse{});
  same_on_the_device(View{});
  same_on_the_device(Pixel{});
  same_on_the_device(Gradient{});
  same_on_the_device(Descend{});
  same_on_the_device(Softmax{}, 1e-15);
  return check::result();
}
