// SPDX-License-Identifier: MIT
#include "io/disk_probe.h"

#include <algorithm>

#include "io/aligned_buffer.h"
#include "io/rate_fit.h"

namespace mlx_flash {
namespace {

constexpr double kWarmUpShare = 0.3;  // of the time of a load
constexpr size_t kReadings = 5;
constexpr double kAgreed = 1.04;       // the larger of two over the smaller
constexpr double kMicrosecond = 1e-6;  // the shortest time that is divided by

// Requests of one size, from the front of the file to its end and over again.
class Reader {
 public:
  Reader(const File& file, ReadQueue& queue, const DiskLoad& load)
      : file_(file),
        queue_(queue),
        request_bytes_(whole(load.request_bytes)),
        buffer_(request_bytes_ * static_cast<size_t>(load.depth),
                std::max<size_t>(file.alignment(), 4096)),
        requests_(static_cast<size_t>(load.depth)) {}

  // Waits for what is under way, whatever became of it.
  ~Reader() {
    ReadRequest* done[16];
    while (queue_.wait(channel_, done, true) > 0) {
    }
  }

  Result<DiskSpeed> run(double seconds) {
    const double start = queue_.now();
    begin_ = start;
    count_from_ = begin_ + kWarmUpShare * seconds;
    for (size_t i = 0; i < requests_.size(); ++i) {
      requests_[i].buffer = buffer_.data() + i * request_bytes_;
      submit(requests_[i]);
    }
    for (size_t under_way = requests_.size(); under_way > 0;) {
      ReadRequest* done[16];
      const size_t n = queue_.wait(channel_, done, true);
      for (size_t i = 0; i < n; ++i) {
        FLASH_RETURN_IF_ERROR(done[i]->status);
        finished(*done[i]);
        if (queue_.now() - start < seconds) {
          submit(*done[i]);
        } else {
          --under_way;
        }
      }
    }
    return result();
  }

 private:
  // At most the file, in whole blocks of the device.
  uint32_t whole(uint32_t bytes) const {
    const uint64_t unit = file_.alignment();
    const uint64_t most = (file_.size() + unit - 1) / unit * unit;
    return static_cast<uint32_t>(std::min<uint64_t>(bytes, most) / unit * unit);
  }

  void submit(ReadRequest& request) {
    if (offset_ >= file_.size()) offset_ = 0;
    request.file = &file_;
    request.offset = offset_;
    request.bytes = request_bytes_;
    // The last one of the file may end in it.
    const uint64_t left = file_.size() - offset_;
    if (left < request_bytes_) {
      const uint64_t unit = file_.alignment();
      request.bytes = static_cast<uint32_t>((left + unit - 1) / unit * unit);
    }
    request.bytes_min =
        static_cast<uint32_t>(std::min<uint64_t>(request.bytes, left));
    offset_ += request.bytes;
    queue_.submit(channel_, request);
  }

  void finished(const ReadRequest& request) {
    bytes_ += request.bytes_min;
    end_ = std::max(end_, request.finish_time);
    if (request.finish_time >= count_from_) {
      fit_.add(request.finish_time, static_cast<double>(bytes_));
    }
    latencies_.push_back(request.finish_time - request.submit_time);
    file_.drop_cached(request.offset, request.bytes);
  }

  DiskSpeed result() {
    std::sort(latencies_.begin(), latencies_.end());
    const auto at = [this](size_t percent) {
      return latencies_[(latencies_.size() - 1) * percent / 100];
    };
    DiskSpeed speed;
    speed.bytes_per_s = fit_.per_second();
    if (speed.bytes_per_s <= 0) {  // too few came
      speed.bytes_per_s =
          static_cast<double>(bytes_) / std::max(end_ - begin_, kMicrosecond);
    }
    speed.latency_p50_s = at(50);
    speed.latency_p99_s = at(99);
    speed.reads = latencies_.size();
    return speed;
  }

  const File& file_;
  ReadQueue& queue_;
  uint32_t request_bytes_;
  AlignedBuffer buffer_;
  std::vector<ReadRequest> requests_;
  ReadChannel channel_;
  uint64_t offset_ = 0;
  uint64_t bytes_ = 0;
  // Throttles let through more at first: counting begins after a while.
  RateFit fit_;
  double count_from_ = 0;
  double begin_ = 0;
  double end_ = 0;
  std::vector<double> latencies_;
};

}  // namespace

std::vector<DiskLoad> DiskProbeOptions::disk_loads() {
  std::vector<DiskLoad> loads;
  for (const uint32_t kib : {64u, 256u, 1024u, 4096u}) {
    for (const int depth : {1, 2, 4, 8, 16}) {
      loads.push_back({kib << 10, depth, true});
    }
  }
  loads.push_back({uint32_t{1} << 20, 8, false});
  return loads;
}

double DiskProbe::bytes_per_s() const {
  double best = 0;
  for (const DiskSpeed& speed : speeds) {
    if (speed.load.direct) best = std::max(best, speed.bytes_per_s);
  }
  return best;
}

Result<DiskProbe> probe_disk(const std::string& path,
                             const DiskProbeOptions& options) {
  FLASH_ASSIGN_OR_RETURN(const File direct,
                         File::open(path, File::Mode::kDirect));
  FLASH_ASSIGN_OR_RETURN(const File buffered,
                         File::open(path, File::Mode::kBuffered));
  if (direct.size() == 0) {
    return invalid_input(path + ": the file is empty: nothing to read");
  }
  buffered.drop_cached(0, buffered.size());
  DiskProbe probe;
  probe.direct = direct.direct();
  probe.file_bytes = direct.size();
  for (const DiskLoad& load : options.loads) {
    ReadQueueOptions queue_options;
    queue_options.depth = load.depth;
    const auto queue = make_read_queue(options.io, queue_options);
    probe.io = queue->name();
    Reader reader(load.direct ? direct : buffered, *queue, load);
    FLASH_ASSIGN_OR_RETURN(DiskSpeed speed, reader.run(options.seconds_each));
    speed.load = load;
    probe.speeds.push_back(speed);
    if (options.progress &&
        !options.progress(probe.speeds.size(), options.loads.size())) {
      break;
    }
  }
  return probe;
}

Result<double> agreed_rate(const std::function<Result<double>()>& reading) {
  std::vector<double> sorted;
  while (sorted.size() < kReadings) {
    FLASH_ASSIGN_OR_RETURN(const double rate, reading());
    const auto place = std::lower_bound(sorted.begin(), sorted.end(), rate);
    const auto added = sorted.insert(place, rate);
    if (added != sorted.begin() && rate <= kAgreed * added[-1]) {
      return (rate + added[-1]) / 2;
    }
    if (added + 1 != sorted.end() && added[1] <= kAgreed * rate) {
      return (rate + added[1]) / 2;
    }
  }
  return sorted[kReadings / 2];
}

}  // namespace mlx_flash
