// SPDX-License-Identifier: Apache-2.0

#include "launch/report.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include <nlohmann/json.hpp>

#include "launch/report_template.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Json = nlohmann::ordered_json;

// More than a chart has pixels.
constexpr size_t kMaxPoints = 1200;
constexpr size_t kLastSteps = 50;  // that a run's training loss is a mean of
constexpr double kSecondsPerHour = 3600;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// Six digits are more than a chart shows; null for what is not finite.
Json Rounded(double value) {
  if (!std::isfinite(value)) return nullptr;
  if (value == 0) return 0;
  const double scale =
      std::pow(10.0, 5 - std::floor(std::log10(std::fabs(value))));
  return std::isfinite(scale) ? std::round(value * scale) / scale : value;
}

// Where a step stands on the three horizontal axes.
struct Place {
  int64_t step = 0;
  int64_t tokens = 0;
  double hours = 0;
};

void AddPlace(const Place& place, Json* part) {
  (*part)["step"].push_back(place.step);
  (*part)["tokens"].push_back(place.tokens);
  (*part)["hours"].push_back(Rounded(place.hours));
}

Json EmptyPart() {
  return {{"step", Json::array()},
          {"tokens", Json::array()},
          {"hours", Json::array()}};
}

enum class Thin { kMean, kSmallest, kLargest };

// A curve of the training lines.
struct Curve {
  const char* name;
  Thin thin;
  std::function<double(const TrainMetrics&)> value;
};

std::vector<Curve> Curves() {
  const auto krr = [](double KrrMetrics::*member) {
    return [member](const TrainMetrics& line) {
      return line.krr.has_value() ? (*line.krr).*member : kNone;
    };
  };
  return {
      {"loss", Thin::kMean, [](const auto& line) { return line.loss; }},
      {"lr", Thin::kMean, [](const auto& line) { return line.lr; }},
      {"grad_norm", Thin::kLargest,
       [](const auto& line) { return line.grad_norm; }},
      {"tokens_per_second", Thin::kMean,
       [](const auto& line) { return line.tokens_per_second; }},
      {"mfu", Thin::kMean,
       [](const auto& line) { return line.mfu.value_or(kNone); }},
      {"wait_seconds", Thin::kLargest,
       [](const auto& line) {
         return line.data.has_value() ? line.data->wait_seconds : kNone;
       }},
      {"min_diagonal", Thin::kSmallest, krr(&KrrMetrics::min_diagonal)},
      {"max_gain", Thin::kLargest, krr(&KrrMetrics::max_gain)},
      {"lambda_max", Thin::kLargest, krr(&KrrMetrics::lambda_max)},
  };
}

// One value for the lines [begin, end); those that are not finite do not count.
double Thinned(const Curve& curve, const std::vector<TrainMetrics>& lines,
               size_t begin, size_t end) {
  double sum = 0;
  double best = kNone;
  int64_t count = 0;
  for (size_t i = begin; i < end; ++i) {
    const double value = curve.value(lines[i]);
    if (!std::isfinite(value)) continue;
    sum += value;
    ++count;
    if (count == 1 || (curve.thin == Thin::kSmallest) == (value < best)) {
      best = value;
    }
  }
  if (count == 0) return kNone;
  return curve.thin == Thin::kMean ? sum / static_cast<double>(count) : best;
}

// Steps that one point of a curve stands for.
size_t StepsPerPoint(size_t lines) {
  return std::max<size_t>(1, (lines + kMaxPoints - 1) / kMaxPoints);
}

// Hours of training up to every line; breaks between parts do not count.
std::vector<Place> Places(const std::vector<TrainMetrics>& lines) {
  std::vector<Place> places;
  double seconds = 0;
  for (const TrainMetrics& line : lines) {
    if (std::isfinite(line.step_seconds)) seconds += line.step_seconds;
    places.push_back({line.step, line.tokens, seconds / kSecondsPerHour});
  }
  return places;
}

// The place of `step`, or of the last line before it.
Place PlaceOf(const std::vector<Place>& places, int64_t step) {
  const auto after = std::upper_bound(
      places.begin(), places.end(), step,
      [](int64_t wanted, const Place& place) { return wanted < place.step; });
  Place place = after == places.begin() ? Place() : *(after - 1);
  place.step = step;
  return place;
}

Json TrainPart(const std::vector<TrainMetrics>& lines,
               const std::vector<Place>& places) {
  Json part = EmptyPart();
  const size_t size = StepsPerPoint(lines.size());
  for (size_t begin = 0; begin < lines.size(); begin += size) {
    const size_t end = std::min(begin + size, lines.size());
    AddPlace(places[end - 1], &part);
    for (const Curve& curve : Curves()) {
      part[curve.name].push_back(Rounded(Thinned(curve, lines, begin, end)));
    }
  }
  return part;
}

Json ValidationPart(const std::vector<ValidationMetrics>& lines,
                    const std::vector<Place>& places) {
  Json part = EmptyPart();
  for (const ValidationMetrics& line : lines) {
    AddPlace(PlaceOf(places, line.step), &part);
    part["loss"].push_back(Rounded(line.loss));
  }
  return part;
}

Json PositionPart(const std::vector<ValidationMetrics>& lines) {
  Json part = Json::array();
  if (lines.empty()) return part;
  for (const auto& [positions, loss] : lines.back().loss_by_position) {
    part.push_back({positions, Rounded(loss)});
  }
  return part;
}

// Numbers of "evaluation" events, a curve for each field.
Json EvaluationPart(const std::vector<EventMetrics>& events,
                    const std::vector<Place>& places) {
  Json part = Json::object();
  for (const EventMetrics& event : events) {
    if (event.event != "evaluation") continue;
    for (const auto& [name, value] : event.fields) {
      const auto* number = absl::get_if<double>(&value);
      if (number == nullptr) continue;
      if (!part.contains(name)) part[name] = EmptyPart();
      AddPlace(PlaceOf(places, event.step), &part[name]);
      part[name]["value"].push_back(Rounded(*number));
    }
  }
  return part;
}

std::string TextOf(const MetricValue& value) {
  if (const auto* text = absl::get_if<std::string>(&value)) return *text;
  if (const auto* number = absl::get_if<double>(&value)) {
    return absl::StrCat(*number);
  }
  if (const auto* integer = absl::get_if<int64_t>(&value)) {
    return absl::StrCat(*integer);
  }
  return absl::get<bool>(value) ? "true" : "false";
}

Json EventPart(const std::vector<EventMetrics>& events) {
  Json part = Json::array();
  for (const EventMetrics& event : events) {
    std::string text;
    for (const auto& [name, value] : event.fields) {
      absl::StrAppend(&text, text.empty() ? "" : ", ", name, ": ",
                      TextOf(value));
    }
    part.push_back(
        {{"step", event.step}, {"event", event.event}, {"text", text}});
  }
  return part;
}

std::string MixerOf(const ReportRun& run) {
  std::string mixer;
  std::string options;
  for (const ConfigValue& value : run.config) {
    if (value.key == "model.mixer") mixer = value.value;
    if (value.key == "model.cubit.share" && value.value == "true") {
      options += " share";
    }
    if (value.key == "model.cubit.lrr" && value.value == "false") {
      options += " nolrr";
    }
  }
  return mixer + options;
}

// The middle one; an even count has two, of which this is the larger.
double Median(std::vector<double> values) {
  if (values.empty()) return kNone;
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

Json SummaryPart(const ReportRun& run, const std::vector<Place>& places) {
  const std::vector<TrainMetrics>& lines = run.metrics.train;
  std::vector<double> rates;
  int64_t memory = 0;
  for (const TrainMetrics& line : lines) {
    if (std::isfinite(line.tokens_per_second)) {
      rates.push_back(line.tokens_per_second);
    }
    memory = std::max(memory, line.memory_bytes);
  }
  const size_t first = lines.size() - std::min(lines.size(), kLastSteps);
  const ValidationMetrics* best = nullptr;
  for (const ValidationMetrics& line : run.metrics.validation) {
    if (best == nullptr || line.loss < best->loss) best = &line;
  }
  const Place last = places.empty() ? Place() : places.back();
  Json part;
  part["mixer"] = MixerOf(run);
  part["steps"] = last.step;
  part["tokens"] = last.tokens;
  part["hours"] = Rounded(last.hours);
  part["train_loss"] =
      Rounded(Thinned(Curves()[0], lines, first, lines.size()));
  part["validation_loss"] = Rounded(best == nullptr ? kNone : best->loss);
  part["validation_step"] = best == nullptr ? 0 : best->step;
  part["perplexity"] = Rounded(best == nullptr ? kNone : best->perplexity);
  part["tokens_per_second"] = Rounded(Median(std::move(rates)));
  part["memory_bytes"] = memory == 0 ? Json() : Json(memory);
  return part;
}

Json RunPart(const ReportRun& run) {
  const std::vector<Place> places = Places(run.metrics.train);
  Json part;
  part["name"] = run.name;
  part["summary"] = SummaryPart(run, places);
  part["steps_per_point"] = StepsPerPoint(run.metrics.train.size());
  part["train"] = TrainPart(run.metrics.train, places);
  part["validation"] = ValidationPart(run.metrics.validation, places);
  part["positions"] = PositionPart(run.metrics.validation);
  part["evaluation"] = EvaluationPart(run.metrics.events, places);
  part["events"] = EventPart(run.metrics.events);
  part["config"] = Json::array();
  for (const ConfigValue& value : run.config) {
    part["config"].push_back({value.key, value.value});
  }
  return part;
}

}  // namespace

absl::StatusOr<ReportRun> LoadReportRun(const std::string& folder) {
  FileSystem& files = FileSystem::Posix();
  const std::string metrics_path = JoinPath(folder, "metrics.jsonl");
  if (!files.Exists(metrics_path)) {
    return absl::NotFoundError(absl::StrCat(
        folder,
        ": has no metrics.jsonl; give the folder of a run, such as "
        "runs/tiny"));
  }
  ReportRun run;
  CUBIT_ASSIGN_OR_RETURN(run.metrics, ReadMetrics(metrics_path));
  CUBIT_ASSIGN_OR_RETURN(const RunConfig config,
                         LoadConfigFile(JoinPath(folder, "config.textproto")));
  run.config = ListConfigValues(config);
  absl::string_view name = folder;
  while (absl::ConsumeSuffix(&name, "/")) {
  }
  const size_t slash = name.rfind('/');
  run.name = std::string(
      slash == absl::string_view::npos ? name : name.substr(slash + 1));
  return run;
}

std::string ReportHtml(const std::vector<ReportRun>& runs) {
  Json json;
  json["runs"] = Json::array();
  for (const ReportRun& run : runs) json["runs"].push_back(RunPart(run));
  const std::string data =
      json.dump(-1, ' ', false, Json::error_handler_t::replace);
  // No text of a run can end the element that holds it.
  return absl::StrReplaceAll(
      ReportTemplate(),
      {{"@DATA@", absl::StrReplaceAll(data, {{"<", "\\u003c"}})}});
}

}  // namespace cubit
