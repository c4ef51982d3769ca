// SPDX-License-Identifier: Apache-2.0

#include "launch/config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include "runtime/check.h"
#include "runtime/command_line.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr int64_t kMaxConfigBytes = 1 << 20;
// Deeper than run.proto; the parser has no limit of its own.
constexpr int kMaxDepth = 8;

// "model" -> its keys with the prefix; leaves only.
void ListKeys(const Descriptor* message, const std::string& prefix,
              std::vector<std::string>* keys) {
  for (int i = 0; i < message->field_count(); ++i) {
    const FieldDescriptor* field = message->field(i);
    const std::string key = absl::StrCat(prefix, field->name());
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      ListKeys(field->message_type(), key + ".", keys);
    } else {
      keys->push_back(key);
    }
  }
}

std::vector<std::string> AllKeys() {
  std::vector<std::string> keys;
  ListKeys(RunConfig::descriptor(), "", &keys);
  return keys;
}

std::vector<std::string> Words(const EnumDescriptor* choice) {
  std::vector<std::string> words;
  words.reserve(static_cast<size_t>(choice->value_count()));
  for (int i = 0; i < choice->value_count(); ++i) {
    words.push_back(choice->value(i)->name());
  }
  return words;
}

// " Did you mean model.num_layers?": a key that ends alike comes before one
// that is spelled alike.
std::string Suggestion(absl::string_view key) {
  const std::vector<std::string> keys = AllKeys();
  for (const std::string& known : keys) {
    if (absl::EndsWith(known, absl::StrCat(".", key))) {
      return absl::StrCat(" Did you mean ", known, "?");
    }
  }
  const std::string nearest = NearestWord(key, keys);
  if (nearest.empty()) return "";
  return absl::StrCat(" Did you mean ", nearest, "?");
}

// Makes the parser's complaints helpful. It says
//   Message type "cubit.RunConfig.Model" has no field named "num_layer".
//   Unknown enumeration value of "layernorm" for field "norm".
class Complaints : public google::protobuf::io::ErrorCollector {
 public:
  explicit Complaints(std::string origin) : origin_(std::move(origin)) {}

  void AddError(int line, int column, const std::string& message) override {
    if (!text_.empty()) return;  // the first is the cause
    text_ = absl::StrCat(origin_, ":", line + 1, ":", column + 1, ": ", message,
                         Help(message));
  }
  const std::string& text() const { return text_; }

 private:
  static std::string Help(absl::string_view message) {
    const std::vector<absl::string_view> parts = absl::StrSplit(message, '"');
    if (parts.size() < 5) return "";
    const std::string first(parts[1]);
    const std::string second(parts[3]);
    if (absl::StrContains(message, "has no field named")) {
      return HelpWithKey(first, second);
    }
    if (absl::StrContains(message, "enumeration value")) {
      return HelpWithWord(RunConfig::descriptor(), second);
    }
    return "";
  }

  static std::string HelpWithKey(const std::string& type,
                                 const std::string& name) {
    const Descriptor* message =
        RunConfig::descriptor()->file()->pool()->FindMessageTypeByName(type);
    if (message == nullptr) return "";
    std::vector<std::string> names;
    names.reserve(static_cast<size_t>(message->field_count()));
    for (int i = 0; i < message->field_count(); ++i) {
      names.push_back(message->field(i)->name());
    }
    const std::string nearest = NearestWord(name, names);
    if (!nearest.empty()) {
      return absl::StrCat(" Did you mean \"", nearest, "\"?");
    }
    std::string elsewhere = Suggestion(name);
    if (!elsewhere.empty()) return elsewhere;
    return absl::StrCat(" Known there: ", absl::StrJoin(names, ", "), ".");
  }

  // Names of choices are unique in run.proto, so the field is enough.
  static std::string HelpWithWord(const Descriptor* message,
                                  const std::string& name) {
    for (int i = 0; i < message->field_count(); ++i) {
      const FieldDescriptor* field = message->field(i);
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        std::string help = HelpWithWord(field->message_type(), name);
        if (!help.empty()) return help;
      } else if (field->name() == name && field->enum_type() != nullptr) {
        return absl::StrCat(
            " Valid: ", absl::StrJoin(Words(field->enum_type()), ", "), ".");
      }
    }
    return "";
  }

  const std::string origin_;
  std::string text_;
};

// Where a key leads: the message that holds the field. Creates the messages on
// the way.
absl::Status FindField(absl::string_view key, RunConfig* config,
                       Message** holder, const FieldDescriptor** field) {
  const auto unknown = [key] {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown key ", key, ".", Suggestion(key)));
  };
  *holder = config;
  std::vector<std::string> groups = absl::StrSplit(key, '.');
  const std::string name = groups.back();
  groups.pop_back();
  for (const std::string& group : groups) {
    const FieldDescriptor* inner =
        (*holder)->GetDescriptor()->FindFieldByName(group);
    if (inner == nullptr ||
        inner->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      return unknown();
    }
    *holder = (*holder)->GetReflection()->MutableMessage(*holder, inner);
  }
  *field = (*holder)->GetDescriptor()->FindFieldByName(name);
  if (*field == nullptr) return unknown();
  if ((*field)->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
    return absl::OkStatus();
  }
  std::vector<std::string> keys;
  ListKeys((*field)->message_type(), absl::StrCat(key, "."), &keys);
  return absl::InvalidArgumentError(
      absl::StrCat(key, " is a group of keys and has no value of its own. ",
                   "Its keys: ", absl::StrJoin(keys, ", ")));
}

absl::Status WrongType(absl::string_view key, absl::string_view value,
                       absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat(
      key, ": \"", value, "\" was given, ", wanted, " was wanted"));
}

// Calls `set` or `add` as the field asks. Reflection has one method for each.
#define CUBIT_SET_OR_ADD(kind, value)                                 \
  (field->is_repeated() ? reflection->Add##kind(holder, field, value) \
                        : reflection->Set##kind(holder, field, value))

absl::Status SetEnum(absl::string_view key, absl::string_view text,
                     const FieldDescriptor* field, Message* holder) {
  const Reflection* reflection = holder->GetReflection();
  const std::vector<std::string> words = Words(field->enum_type());
  const std::string word = absl::AsciiStrToLower(text);
  const auto* value = field->enum_type()->FindValueByName(word);
  if (value == nullptr) {
    const std::string nearest = NearestWord(word, words);
    return absl::InvalidArgumentError(absl::StrCat(
        key, ": \"", text, "\" was given, one of ", absl::StrJoin(words, ", "),
        " was wanted.",
        nearest.empty() ? "" : absl::StrCat(" Did you mean ", nearest, "?")));
  }
  CUBIT_SET_OR_ADD(Enum, value);
  return absl::OkStatus();
}

absl::Status SetScalar(absl::string_view key, absl::string_view text,
                       const FieldDescriptor* field, Message* holder) {
  const Reflection* reflection = holder->GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL: {
      bool value = false;
      if (!absl::SimpleAtob(text, &value)) {
        return WrongType(key, text, "true or false");
      }
      CUBIT_SET_OR_ADD(Bool, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_INT32: {
      int32_t value = 0;
      if (!absl::SimpleAtoi(text, &value)) {
        return WrongType(key, text, "an integer");
      }
      CUBIT_SET_OR_ADD(Int32, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      int64_t value = 0;
      if (!absl::SimpleAtoi(text, &value)) {
        return WrongType(key, text, "an integer");
      }
      CUBIT_SET_OR_ADD(Int64, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      uint64_t value = 0;
      if (!absl::SimpleAtoi(text, &value)) {
        return WrongType(key, text, "an integer that is not negative");
      }
      CUBIT_SET_OR_ADD(UInt64, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      double value = 0;
      if (!absl::SimpleAtod(text, &value) || !std::isfinite(value)) {
        return WrongType(key, text, "a number");
      }
      CUBIT_SET_OR_ADD(Double, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_STRING:
      CUBIT_SET_OR_ADD(String, std::string(text));
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_ENUM:
      return SetEnum(key, text, field, holder);
    default:
      return absl::InternalError(absl::StrCat(key, " has a type of no key"));
  }
}
#undef CUBIT_SET_OR_ADD

std::string PrintField(const Message& holder, const FieldDescriptor* field,
                       int index) {
  std::string text;
  google::protobuf::TextFormat::PrintFieldValueToString(holder, field, index,
                                                        &text);
  return text;
}

// Writes the default of every unset key, so that it is seen.
void FillDefaults(Message* message) {
  const Descriptor* descriptor = message->GetDescriptor();
  const Reflection* reflection = message->GetReflection();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    if (field->is_repeated()) continue;
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      FillDefaults(reflection->MutableMessage(message, field));
    } else if (!reflection->HasField(*message, field)) {
      // The text of a default is what an override would be.
      CUBIT_CHECK_OK(
          SetScalar(field->name(),
                    field->cpp_type() == FieldDescriptor::CPPTYPE_STRING
                        ? field->default_value_string()
                        : PrintField(*message, field, -1),
                    field, message));
    }
  }
}

void ListValues(const Message& message, const std::string& prefix,
                std::vector<ConfigValue>* values) {
  const Descriptor* descriptor = message.GetDescriptor();
  const Reflection* reflection = message.GetReflection();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    const std::string key = absl::StrCat(prefix, field->name());
    if (field->is_repeated()) {
      std::vector<std::string> parts;
      parts.reserve(static_cast<size_t>(reflection->FieldSize(message, field)));
      for (int j = 0; j < reflection->FieldSize(message, field); ++j) {
        parts.push_back(PrintField(message, field, j));
      }
      values->push_back({key, absl::StrJoin(parts, ",")});
    } else if (!reflection->HasField(message, field)) {
      continue;  // a mixer that is not chosen
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      ListValues(reflection->GetMessage(message, field), key + ".", values);
    } else {
      values->push_back({key, PrintField(message, field, -1)});
    }
  }
}

// The option messages of mixers bear the mixers' words.
void ClearOptionsOfOtherMixers(RunConfig::Model* model) {
  const auto* mixers = RunConfig::Mixer::Word_descriptor();
  for (int i = 0; i < mixers->value_count(); ++i) {
    if (mixers->value(i)->number() == model->mixer()) continue;
    const FieldDescriptor* field =
        model->GetDescriptor()->FindFieldByName(mixers->value(i)->name());
    if (field != nullptr) model->GetReflection()->ClearField(model, field);
  }
}

}  // namespace

absl::StatusOr<RunConfig> ParseConfig(absl::string_view text,
                                      const std::string& origin) {
  Complaints complaints(origin);
  google::protobuf::TextFormat::Parser parser;
  parser.SetRecursionLimit(kMaxDepth);
  parser.RecordErrorsTo(&complaints);
  RunConfig config;
  if (parser.ParseFromString(std::string(text), &config)) return config;
  return absl::InvalidArgumentError(complaints.text());
}

absl::StatusOr<RunConfig> LoadConfigFile(const std::string& path) {
  CUBIT_ASSIGN_OR_RETURN(const std::string text,
                         ReadFile(FileSystem::Posix(), path, kMaxConfigBytes));
  return ParseConfig(text, path);
}

absl::Status ApplyOverride(absl::string_view assignment, RunConfig* config) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(assignment, absl::MaxSplits('=', 1));
  if (!absl::StrContains(assignment, '=')) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", assignment, "\" was given, KEY=VALUE was wanted, as in ",
        "model.num_layers=12"));
  }
  const absl::string_view key = absl::StripAsciiWhitespace(parts.first);
  const absl::string_view value = absl::StripAsciiWhitespace(parts.second);
  RunConfig changed = *config;
  Message* holder = nullptr;
  const FieldDescriptor* field = nullptr;
  CUBIT_RETURN_IF_ERROR(FindField(key, &changed, &holder, &field));
  if (field->is_repeated()) {
    holder->GetReflection()->ClearField(holder, field);
    for (absl::string_view part :
         absl::StrSplit(value, ',', absl::SkipEmpty())) {
      CUBIT_RETURN_IF_ERROR(
          SetScalar(key, absl::StripAsciiWhitespace(part), field, holder));
    }
  } else {
    CUBIT_RETURN_IF_ERROR(SetScalar(key, value, field, holder));
  }
  *config = std::move(changed);
  return absl::OkStatus();
}

bool SetTotalSteps(int64_t steps, RunConfig* config) {
  RunConfig::Schedule* schedule = config->mutable_schedule();
  const double share =
      static_cast<double>(steps) / static_cast<double>(schedule->total_steps());
  schedule->set_total_steps(steps);
  const int64_t wanted = schedule->warmup_steps() + schedule->decay_steps();
  if (wanted < steps) return false;
  const auto shorten = [share](int64_t length) {
    return static_cast<int64_t>(share * static_cast<double>(length));
  };
  schedule->set_warmup_steps(shorten(schedule->warmup_steps()));
  if (schedule->decay_steps() > 0) {
    schedule->set_decay_steps(
        std::max<int64_t>(1, shorten(schedule->decay_steps())));
  }
  return true;
}

RunConfig ResolveConfig(const RunConfig& config) {
  RunConfig resolved = config;
  FillDefaults(&resolved);
  RunConfig::Model* model = resolved.mutable_model();
  ClearOptionsOfOtherMixers(model);
  if (model->ffn_hidden_size() == 0) {
    const int64_t hidden = model->hidden_size();
    model->set_ffn_hidden_size(model->mlp() == RunConfig::Mlp::swiglu
                                   ? PaddedVocabSize((8 * hidden + 2) / 3)
                                   : 4 * hidden);
  }
  RunConfig::Schedule* schedule = resolved.mutable_schedule();
  if (schedule->kind() == RunConfig::ScheduleKind::wsd &&
      schedule->decay_steps() == 0) {
    schedule->set_decay_steps(schedule->total_steps() / 5);
  }
  return resolved;
}

std::string ResolvedText(const RunConfig& config) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(ResolveConfig(config), &text);
  return text;
}

int64_t PaddedVocabSize(int64_t tokenizer_vocab_size) {
  return (tokenizer_vocab_size + 63) / 64 * 64;
}

std::vector<ConfigValue> ListConfigValues(const RunConfig& config) {
  std::vector<ConfigValue> values;
  ListValues(ResolveConfig(config), "", &values);
  return values;
}

}  // namespace cubit
