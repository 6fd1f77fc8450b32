"""What tests are made with: processes, Redis servers, a faulty network, strict clients."""
