// SPDX-License-Identifier: Apache-2.0

#include "launch/tensorboard.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "launch/tensorboard.pb.h"
#include "runtime/file_system.h"
#include "runtime/host_name.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr uint32_t kCastagnoli = 0x82f63b78;  // reflected

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table = {};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? kCastagnoli : 0);
    }
    table[byte] = crc;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kTable = MakeTable();

// A checksum of bytes that hold checksums is masked, says the format.
uint32_t Mask(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8; }

template <typename T>
void AppendInteger(T value, std::string* out) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "as in memory");
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

tensorboard::Event EventAt(int64_t step) {
  tensorboard::Event event;
  event.set_wall_time(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
  event.set_step(step);
  return event;
}

}  // namespace

uint32_t Crc32c(absl::string_view bytes) {
  uint32_t crc = ~uint32_t{0};
  for (const char c : bytes) {
    crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  }
  return ~crc;
}

std::string TfRecord(absl::string_view payload) {
  std::string record;
  AppendInteger<uint64_t>(payload.size(), &record);
  AppendInteger(Mask(Crc32c(record)), &record);
  absl::StrAppend(&record, payload);
  AppendInteger(Mask(Crc32c(payload)), &record);
  return record;
}

absl::StatusOr<std::unique_ptr<TensorBoardWriter>> TensorBoardWriter::Create(
    const std::string& folder, int64_t first_step) {
  CUBIT_RETURN_IF_ERROR(FileSystem::Posix().CreateFolders(folder));
  const std::string path =
      JoinPath(folder, absl::StrFormat("events.out.tfevents.%010d.%s.%d",
                                       absl::ToUnixSeconds(absl::Now()),
                                       HostName(), getpid()));
  const int fd =
      open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::UnavailableError(
        absl::StrCat(path, ": cannot open: ", std::strerror(errno)));
  }
  auto writer =
      std::unique_ptr<TensorBoardWriter>(new TensorBoardWriter(path, fd));
  tensorboard::Event version = EventAt(0);
  version.set_file_version("brain.Event:2");
  tensorboard::Event start = EventAt(first_step);
  start.mutable_session_log()->set_status(tensorboard::SessionLog::START);
  CUBIT_RETURN_IF_ERROR(writer->Append(TfRecord(version.SerializeAsString()) +
                                       TfRecord(start.SerializeAsString())));
  return writer;
}

TensorBoardWriter::~TensorBoardWriter() {
  if (fd_ >= 0) close(fd_);
}

void TensorBoardWriter::OnScalars(int64_t step,
                                  const std::vector<MetricScalar>& scalars) {
  if (fd_ < 0 || scalars.empty()) return;
  tensorboard::Event event = EventAt(step);
  for (const MetricScalar& scalar : scalars) {
    tensorboard::Summary::Value* value = event.mutable_summary()->add_value();
    value->set_tag(scalar.name);
    value->set_simple_value(static_cast<float>(scalar.value));
  }
  const absl::Status status = Append(TfRecord(event.SerializeAsString()));
  if (status.ok()) return;
  LogWarning(absl::StrCat(status.message(),
                          "; no more is written there, metrics.jsonl goes on"));
  close(fd_);
  fd_ = -1;
}

absl::Status TensorBoardWriter::Append(const std::string& record) {
  size_t done = 0;
  while (done < record.size()) {
    const ssize_t written =
        write(fd_, record.data() + done, record.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      return absl::UnavailableError(
          absl::StrCat(path_, ": cannot write: ", std::strerror(errno)));
    }
    done += static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

}  // namespace cubit
