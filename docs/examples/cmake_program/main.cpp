// rate CUSTOMERS: reads 12 numbers per customer and prints the probabilities of the ratings 1 to 5, a line each.
#include <ratings.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr std::size_t counts = 12, ratings_count = 5;

void check(int result) {
  if (result != RATINGS_OK) throw std::runtime_error(ratings_last_error());
}

struct Destroy {
  void operator()(ratings_model *model) const { ratings_destroy(model); }
};

std::unique_ptr<ratings_model, Destroy> open_model(int threads) {
  ratings_model *model = nullptr;
  check(ratings_open(nullptr, threads, &model));  // the weights in the package
  return std::unique_ptr<ratings_model, Destroy>(model);
}

// float32[customers, 5] of float32[customers, 12].
std::vector<float> rate(ratings_model *model, const std::vector<float> &visits) {
  const std::int64_t customers = static_cast<std::int64_t>(visits.size() / counts);
  std::vector<float> probabilities(static_cast<std::size_t>(customers) * ratings_count);
  const void *const inputs[] = {visits.data()};
  void *const outputs[] = {probabilities.data()};
  check(ratings_run(model, RATINGS_FUNCTION_FORWARD, nullptr, inputs, outputs, &customers));
  return probabilities;
}

}  // namespace

int main(int argc, char **argv) try {
  if (argc != 2) throw std::runtime_error("usage: rate CUSTOMERS < numbers");
  std::vector<float> visits(std::strtoul(argv[1], nullptr, 10) * counts);
  for (float &value : visits)
    if (std::scanf("%f", &value) != 1) throw std::runtime_error("expected 12 numbers per customer");
  const auto model = open_model(2);
  const std::vector<float> probabilities = rate(model.get(), visits);
  for (std::size_t i = 0; i < probabilities.size(); ++i)
    std::printf("%.9g%c", static_cast<double>(probabilities[i]), (i + 1) % ratings_count ? ' ' : '\n');
  return 0;
} catch (const std::exception &error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
