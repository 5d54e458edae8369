// SPDX-License-Identifier: MIT
#pragma once

// One HTTP request, its redirects, and when to try again. The server is not
// trusted: everything it can make long has a limit (redirects, headers, bodies,
// waiting), the token goes to the endpoint's own origin only, and an https
// address never leads to an http one.

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "base/status.h"
#include "hub/libraries.h"
#include "hub/settings.h"

namespace mlx_flash::hub {

struct HttpResponse {
  long status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string url;                             // that answered, after redirects
  std::string location;  // where a redirect leads that was not followed
  std::string body;      // of answers without a sink, or with an error

  // Empty if absent.
  std::string header(const std::string& name) const;
  bool success() const { return status >= 200 && status < 300; }
};

// Takes the body of a 2xx answer piece by piece; `head` has status and headers.
// A failure ends the transfer and is final.
using BodySink =
    std::function<Status(const HttpResponse& head, std::span<const char>)>;

struct HttpRequest {
  std::string url;
  bool head = false;  // HEAD
  bool stay =
      false;  // do not follow redirects to other origins; HEAD never does
  std::optional<std::pair<uint64_t, uint64_t>> range;  // first, last byte
  uint64_t body_max = 0;  // without a sink: more is an error
  BodySink sink;
  int64_t total_ms = 0;  // 0: only idle time counts
};

// Why there is no answer. `again`: trying again may help.
struct HttpFailure {
  Status status;
  bool again = false;
};

// What reaches into transfers from outside. Outlives what it is given to.
struct Control {
  // Becomes true: everything ends within a moment, with kCancelled.
  const std::atomic<bool>& stop;
  // Takes a sentence for the user ("... trying again in 4 s"); any thread.
  std::function<void(const std::string&)> note;
};

// Not thread-safe: one for each thread. Keeps its connections open.
class HttpClient {
 public:
  HttpClient(std::shared_ptr<const CurlApi> curl,
             const Settings& settings,
             const Control& control);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // One try, redirects followed. An answer with an error status is an answer.
  std::variant<HttpResponse, HttpFailure> send_once(const HttpRequest& request);

  // Tries again after failures of the network and after 408, 429, 5xx, as
  // often as the policy allows; waits as Retry-After says. What comes back may
  // still have an error status.
  Result<HttpResponse> send(const HttpRequest& request);

  // Seconds the last answer asked to wait; 0: none.
  int64_t retry_after_s() const { return retry_after_s_; }

  // Scheme, host, port of a URL in one string; empty if it is no http(s) URL.
  std::string origin_of(const std::string& url) const;

  const Settings& settings() const { return settings_; }
  const Control& control() const { return control_; }

 private:
  struct Transfer;
  CURLcode drive();
  Status prepare(const HttpRequest& request, Transfer& transfer);
  HttpFailure failure(const Transfer& transfer, CURLcode code) const;
  std::optional<HttpFailure> perform(const HttpRequest& request,
                                     Transfer& transfer);

  std::shared_ptr<const CurlApi> curl_;
  const Settings& settings_;
  const Control& control_;
  std::string home_;  // the endpoint's origin
  CURL* handle_ = nullptr;
  CURLM* multi_ = nullptr;
  int64_t retry_after_s_ = 0;
};

// Counts tries and says how long to wait for the next.
class Backoff {
 public:
  Backoff(int64_t first_ms, const Control& control)
      : first_ms_(first_ms), control_(control) {}

  // Waits for the next try: longer each time, at least `retry_after_s`. Fails
  // with `why` when there have been enough tries or the wait is too long, with
  // kCancelled when stopped meanwhile.
  Status wait(const Status& why, int64_t retry_after_s);
  void progressed() { tries_ = 0; }

 private:
  int64_t first_ms_;
  const Control& control_;
  int tries_ = 0;
};

// True for answers that another try may turn into a better one.
bool is_transient(long status);

}  // namespace mlx_flash::hub
