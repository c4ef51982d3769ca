// SPDX-License-Identifier: Apache-2.0

#include "launch/metrics.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include <nlohmann/json.hpp>

#include "runtime/check.h"
#include "runtime/file_system.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMaxMetricsBytes = int64_t{1} << 32;

}  // namespace

// Builds an object and remembers which of its numbers are not finite.
class MetricsLine {
 public:
  MetricsLine(const char* kind, int64_t step) : kind_(kind), step_(step) {
    json_["kind"] = kind;
  }

  int64_t step() const { return step_; }

  MetricsLine& Add(const std::string& name, Json value) {
    json_[name] = std::move(value);
    return *this;
  }
  MetricsLine& AddNumber(const std::string& name, double value) {
    json_[name] = Number(name, value);
    return *this;
  }
  Json Number(const std::string& name, double value) {
    if (std::isfinite(value)) return value;
    lost_.emplace_back(name, value);
    return nullptr;
  }

  // With the event that names what was not finite.
  std::string Text() const {
    using Handler = Json::error_handler_t;
    std::string text = json_.dump(-1, ' ', false, Handler::replace) + "\n";
    if (lost_.empty()) return text;
    Json event = {{"kind", "event"}, {"event", "non_finite"}, {"step", step_}};
    for (const auto& [name, value] : lost_) {
      event[name] = std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
    }
    return text + event.dump() + "\n";
  }

  // Every number but the step, those that are not finite included.
  std::vector<MetricScalar> Scalars() const {
    std::vector<MetricScalar> scalars;
    const std::string prefix =
        kind_ == "event" ? json_["event"].get<std::string>() : kind_;
    AddScalars(prefix, json_, &scalars);
    for (const auto& [name, value] : lost_) {
      scalars.push_back(
          {absl::StrCat(prefix, "/", absl::StrReplaceAll(name, {{".", "/"}})),
           value});
    }
    return scalars;
  }

 private:
  static void AddScalars(const std::string& prefix, const Json& members,
                         std::vector<MetricScalar>* scalars) {
    for (const auto& [name, value] : members.items()) {
      const std::string path = absl::StrCat(prefix, "/", name);
      if (value.is_structured()) AddScalars(path, value, scalars);
      if (value.is_number() && name != "step") {
        scalars->push_back({path, value.get<double>()});
      }
    }
  }

  std::string kind_;
  int64_t step_;
  Json json_;
  std::vector<std::pair<std::string, double>> lost_;
};

namespace {

Json ToJson(const std::string& name, const MetricValue& value,
            MetricsLine* line) {
  if (const auto* number = absl::get_if<double>(&value)) {
    return line->Number(name, *number);
  }
  if (const auto* integer = absl::get_if<int64_t>(&value)) return *integer;
  if (const auto* truth = absl::get_if<bool>(&value)) return *truth;
  return absl::get<std::string>(value);
}

absl::Status SystemError(const std::string& path, absl::string_view operation) {
  const std::string what =
      absl::StrCat(path, ": cannot ", operation, ": ", std::strerror(errno));
  switch (errno) {
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(what);
    case EEXIST:
      return absl::AlreadyExistsError(what);
    case EACCES:
    case EROFS:
      return absl::PermissionDeniedError(what);
    default:
      return absl::UnavailableError(what);
  }
}

Json ParseLine(absl::string_view line) {
  return Json::parse(line.begin(), line.end(), nullptr,
                     /*allow_exceptions=*/false);
}

// Members of a line; the first that is missing or of another kind is noted.
class Fields {
 public:
  explicit Fields(const Json& json) : json_(json) {}

  bool ok() const { return ok_; }
  const Json* Find(const char* name) {
    const auto found = json_.find(name);
    if (found != json_.end()) return &*found;
    ok_ = false;
    return nullptr;
  }
  double Number(const char* name) {
    const Json* value = Find(name);
    if (value == nullptr || value->is_null()) {
      return std::numeric_limits<double>::quiet_NaN();
    }
    ok_ = ok_ && value->is_number();
    return ok_ ? value->get<double>() : 0;
  }
  int64_t Integer(const char* name) {
    const Json* value = Find(name);
    ok_ = ok_ && value->is_number_integer();
    return ok_ ? value->get<int64_t>() : 0;
  }
  std::string Text(const char* name) {
    const Json* value = Find(name);
    ok_ = ok_ && value->is_string();
    return ok_ ? value->get<std::string>() : "";
  }

 private:
  const Json& json_;
  bool ok_ = true;
};

bool ReadData(const Json& json, TrainMetrics* metrics) {
  if (!json.is_object()) return false;
  Fields fields(json);
  DataMetrics& data = metrics->data.emplace();
  data.position = fields.Integer("position");
  data.wait_seconds = fields.Number("wait_seconds");
  const Json* epochs = fields.Find("epochs");
  if (!fields.ok() || !epochs->is_array()) return false;
  for (const Json& epoch : *epochs) {
    if (!epoch.is_number()) return false;
    data.epochs.push_back(epoch.get<double>());
  }
  return true;
}

bool ReadTrain(const Json& json, TrainMetrics* metrics) {
  Fields fields(json);
  metrics->step = fields.Integer("step");
  metrics->tokens = fields.Integer("tokens");
  metrics->loss = fields.Number("loss");
  metrics->lr = fields.Number("lr");
  metrics->grad_norm = fields.Number("grad_norm");
  metrics->tokens_per_second = fields.Number("tokens_per_second");
  const double mfu = fields.Number("mfu");
  if (!std::isnan(mfu)) metrics->mfu = mfu;
  metrics->step_seconds = fields.Number("step_seconds");
  metrics->memory_bytes = fields.Integer("memory_bytes");
  if (json.contains("data") && !ReadData(json["data"], metrics)) return false;
  const Json* krr = fields.Find("krr");
  if (!fields.ok()) return false;
  if (krr->is_null()) return true;
  if (!krr->is_object()) return false;
  Fields health(*krr);
  metrics->krr =
      KrrMetrics{health.Number("min_diagonal"), health.Number("max_gain"),
                 health.Number("lambda_max")};
  return health.ok();
}

bool ReadValidation(const Json& json, ValidationMetrics* metrics) {
  Fields fields(json);
  metrics->step = fields.Integer("step");
  metrics->loss = fields.Number("loss");
  metrics->perplexity = fields.Number("perplexity");
  metrics->tokens = fields.Integer("tokens");
  const Json* positions = fields.Find("loss_by_position");
  if (!fields.ok() || !positions->is_object()) return false;
  Fields losses(*positions);
  for (const auto& [name, value] : positions->items()) {
    metrics->loss_by_position.emplace_back(name, losses.Number(name.c_str()));
  }
  return losses.ok();
}

bool ReadEvent(const Json& json, EventMetrics* metrics) {
  Fields fields(json);
  metrics->event = fields.Text("event");
  metrics->step = fields.Integer("step");
  if (!fields.ok()) return false;
  for (const auto& [name, value] : json.items()) {
    if (name == "kind" || name == "event" || name == "step") continue;
    MetricValue field;
    if (value.is_string()) {
      field = value.get<std::string>();
    } else if (value.is_boolean()) {
      field = value.get<bool>();
    } else if (value.is_number_integer()) {
      field = value.get<int64_t>();
    } else if (value.is_number() || value.is_null()) {
      field = fields.Number(name.c_str());
    } else {
      return false;
    }
    metrics->fields.emplace_back(name, std::move(field));
  }
  return true;
}

bool ReadLine(const Json& json, RunMetrics* metrics) {
  if (!json.is_object()) return false;
  Fields fields(json);
  const std::string kind = fields.Text("kind");
  if (kind == "train") {
    return ReadTrain(json, &metrics->train.emplace_back());
  }
  if (kind == "validation") {
    return ReadValidation(json, &metrics->validation.emplace_back());
  }
  return kind == "event" && ReadEvent(json, &metrics->events.emplace_back());
}

// What stays of `text` when a run continues after `step`.
std::string LinesUpTo(const std::string& path, absl::string_view text,
                      int64_t step) {
  std::string kept;
  int64_t number = 0;
  while (!text.empty()) {
    ++number;
    const size_t end = text.find('\n');
    const bool whole = end != absl::string_view::npos;
    const absl::string_view line = text.substr(0, end);
    text.remove_prefix(whole ? end + 1 : text.size());
    const Json json = whole ? ParseLine(line) : Json();
    if (!json.is_object()) {
      LogWarning(absl::StrCat(path, ":", number, ": dropped a line that is ",
                              whole ? "no JSON object" : "cut short"));
      continue;
    }
    const auto found = json.find("step");
    const bool later = found != json.end() && found->is_number_integer() &&
                       found->get<int64_t>() > step;
    if (!later) absl::StrAppend(&kept, line, "\n");
  }
  return kept;
}

}  // namespace

absl::StatusOr<MetricsWriter> MetricsWriter::Open(const std::string& path,
                                                  int flags) {
  const int fd = open(path.c_str(),
                      O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | flags, 0644);
  if (fd < 0) return SystemError(path, "open");
  return MetricsWriter(path, fd);
}

absl::StatusOr<MetricsWriter> MetricsWriter::Create(const std::string& path) {
  return Open(path, O_EXCL);
}

absl::StatusOr<MetricsWriter> MetricsWriter::Resume(const std::string& path,
                                                    int64_t step) {
  FileSystem& files = FileSystem::Posix();
  if (files.Exists(path)) {
    CUBIT_ASSIGN_OR_RETURN(const std::string text,
                           ReadFile(files, path, kMaxMetricsBytes));
    const std::string kept = LinesUpTo(path, text, step);
    if (kept != text) {
      CUBIT_RETURN_IF_ERROR(WriteFileAtomically(files, path, kept));
    }
  }
  return Open(path, 0);
}

MetricsWriter::~MetricsWriter() {
  if (fd_ >= 0) close(fd_);
}

MetricsWriter::MetricsWriter(MetricsWriter&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      sinks_(std::move(other.sinks_)) {}

MetricsWriter& MetricsWriter::operator=(MetricsWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(sinks_, other.sinks_);
  return *this;
}

absl::Status MetricsWriter::Write(const TrainMetrics& metrics) {
  MetricsLine line("train", metrics.step);
  line.Add("step", metrics.step)
      .Add("tokens", metrics.tokens)
      .AddNumber("loss", metrics.loss)
      .AddNumber("lr", metrics.lr)
      .AddNumber("grad_norm", metrics.grad_norm)
      .AddNumber("tokens_per_second", metrics.tokens_per_second)
      .Add("mfu", nullptr);
  if (metrics.mfu.has_value()) line.AddNumber("mfu", *metrics.mfu);
  line.AddNumber("step_seconds", metrics.step_seconds)
      .Add("memory_bytes", metrics.memory_bytes)
      .Add("krr", nullptr);
  if (metrics.krr.has_value()) {
    Json health;
    health["min_diagonal"] =
        line.Number("krr.min_diagonal", metrics.krr->min_diagonal);
    health["max_gain"] = line.Number("krr.max_gain", metrics.krr->max_gain);
    health["lambda_max"] =
        line.Number("krr.lambda_max", metrics.krr->lambda_max);
    line.Add("krr", std::move(health));
  }
  if (metrics.data.has_value()) {
    Json data;
    data["position"] = metrics.data->position;
    data["epochs"] = metrics.data->epochs;
    data["wait_seconds"] = metrics.data->wait_seconds;
    line.Add("data", std::move(data));
  }
  return WriteLine(line);
}

absl::Status MetricsWriter::Write(const ValidationMetrics& metrics) {
  MetricsLine line("validation", metrics.step);
  line.Add("step", metrics.step)
      .AddNumber("loss", metrics.loss)
      .AddNumber("perplexity", metrics.perplexity)
      .Add("tokens", metrics.tokens);
  Json losses = Json::object();
  for (const auto& [positions, loss] : metrics.loss_by_position) {
    losses[positions] = line.Number("loss_by_position." + positions, loss);
  }
  line.Add("loss_by_position", std::move(losses));
  return WriteLine(line);
}

absl::Status MetricsWriter::Write(const EventMetrics& metrics) {
  MetricsLine line("event", metrics.step);
  line.Add("event", metrics.event).Add("step", metrics.step);
  for (const auto& [name, value] : metrics.fields) {
    CUBIT_CHECK(name != "kind" && name != "event" && name != "step") << name;
    line.Add(name, ToJson(name, value, &line));
  }
  return WriteLine(line);
}

absl::Status MetricsWriter::WriteLine(const MetricsLine& line) {
  CUBIT_RETURN_IF_ERROR(Append(line.Text()));
  if (sinks_.empty()) return absl::OkStatus();
  const std::vector<MetricScalar> scalars = line.Scalars();
  for (const auto& sink : sinks_) sink->OnScalars(line.step(), scalars);
  return absl::OkStatus();
}

absl::Status MetricsWriter::Append(const std::string& lines) {
  struct stat before = {};
  if (fstat(fd_, &before) != 0) return SystemError(path_, "look at");
  size_t done = 0;
  while (done < lines.size()) {
    const ssize_t written =
        write(fd_, lines.data() + done, lines.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      absl::Status status = SystemError(path_, "write");
      if (ftruncate(fd_, before.st_size) != 0) {
        LogWarning(absl::StrCat(path_, ": the last line is cut short"));
      }
      return status;
    }
    done += static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

absl::StatusOr<RunMetrics> ReadMetrics(const std::string& path) {
  CUBIT_ASSIGN_OR_RETURN(const std::string text,
                         ReadFile(FileSystem::Posix(), path, kMaxMetricsBytes));
  RunMetrics metrics;
  const std::vector<absl::string_view> lines = absl::StrSplit(text, '\n');
  // Behind the last newline stands nothing, or a torn line.
  for (size_t i = 0; i + 1 < lines.size(); ++i) {
    if (!ReadLine(ParseLine(lines[i]), &metrics)) {
      return absl::DataLossError(
          absl::StrCat(path, ":", i + 1,
                       ": is no line of metrics: ", lines[i].substr(0, 80)));
    }
  }
  return metrics;
}

}  // namespace cubit
